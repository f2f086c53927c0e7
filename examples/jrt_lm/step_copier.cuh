// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <jrt/cuda/device_steps.cuh>
#include <jrt/detail/cuda/core/sm90/instructions.cuh>

#include "jrt_lm/step_block.cuh"

namespace jrt_lm {

/// The copying warp: all weights of the block in the order in which they are multiplied; and, far ahead of the stages that
/// read them, lines of the small arrays and states for the L2 cache.
template <class Shape>
class StepCopier : StepBlock<Shape> {
  using Block = StepBlock<Shape>;

 public:
  using Block::Block;

  __device__ __forceinline__ void run() {
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy_));
    for (int s = 0; s < this->in_.stage_count; ++s) {
      const Stage& stage = this->stages_[s];
      if (is_product(stage.kind)) {
        copy(stage);
      } else if (stage.kind == StageKind::linear) {
        prefetch_states<typename Shape::Linear>(stage, this->in_.heads);
      } else if (stage.kind == StageKind::window) {
        prefetch_states<typename Shape::Window>(stage, this->in_.window_kv_heads);
        if (this->has_head(this->in_.window_kv_heads)) {
          lend();
        }
      }
    }
  }

 private:
  /// In the order in which StepProducts takes them.
  __device__ void copy(const Stage& stage) {
    const RingBatch batch = Shape::batch(stage.kind);
    const int parts = tile_parts(stage.kind);
    const int tiles = batch.parts / parts;
    const int pieces = pieces_of(stage.in);
    for (int first = stage.first_tile; first < stage.tiles; first += tiles * this->blocks_) {
      int present = 0;
      for (int i = 0; i < tiles && first + i * this->blocks_ < stage.tiles; ++i) {
        present += parts;
        if (stage.kind != StageKind::logits) {
          prefetch(stage, first + i * this->blocks_);
        }
      }
      for (int begin = 0; begin < pieces; begin += batch.at_once) {
        for (int slot = 0; slot < batch.slots(); ++slot) {
          if (batch.has(slot, present, pieces - begin)) {
            copy_slot(stage, batch, first, present, begin, slot);
          }
        }
      }
    }
  }
  /// Pieces of a row that a lane copies. Copies of one kilobyte take so long to issue that the warp reads at no more than
  /// three quarters of the memory's pace, which wide models wait for, and logits; in other stages of several rows larger
  /// ones delay the loads of x.
  [[nodiscard]] __device__ int copied_pieces(const Stage& stage, const RingBatch& batch) const {
    const bool one = this->in_.rows >= gated_rows && !Shape::wide && stage.kind != StageKind::logits;
    return one || batch.at_once == 1 ? 1 : 2;
  }
  __device__ void copy_slot(const Stage& stage, const RingBatch& batch, int first, int present, int begin, int slot) {
    using namespace jrt::detail::cuda;
    const int parts = tile_parts(stage.kind);
    const int copied = copied_pieces(stage, batch);
    const int place = this->lane() / tile_outputs * copied;
    const int row = this->lane() % tile_outputs;
    const int part = batch.part(slot * slot_pieces + place);
    const int piece = batch.piece(slot * slot_pieces + place);
    const int column = (begin + piece) * piece_columns;
    const bool is_there = place < slot_pieces && part < present && column < stage.in;
    const int columns = stage.in - column < copied * piece_columns ? stage.in - column : copied * piece_columns;
    const int bytes = is_there ? 2 * columns : 0;
    const int number =
        tile_row(stage, first + (parts == 2 ? part / 2 : part) * this->blocks_, parts == 2 ? part % 2 : 0) + row;
    const auto* const from = static_cast<const std::byte*>(stage.weight) + (std::int64_t{number} * stage.in + column) * 2;
    const auto all = static_cast<int>(__reduce_add_sync(~0U, static_cast<unsigned>(bytes)));
    barrier_wait(this->empty(this->place_.slot), this->place_.round ^ 1);
    barrier_expect(this->full(this->place_.slot), all);
    __syncwarp();
    if (is_there) {
      const int row_of_slot = batch.part(place) * tile_outputs + row;
      copy_row(this->weights(this->place_.slot) +
                   static_cast<unsigned>(row_of_slot * row_stride(batch.at_once) + piece * piece_columns * 2),
               from, bytes, this->full(this->place_.slot), policy_);
    }
    this->place_.advance(this->parameters_.ring_slots);
  }

  __device__ void prefetch(const Stage& stage, int tile) const {
    const int lane = this->lane();
    const auto line = [](const void* from) { jrt::prefetch_lines(from, 1, 0, 1); };
    const int part = lane % 2;
    if (lane < tile_parts(stage.kind) && stage.bias != nullptr) {
      const std::int64_t number = tile_row(stage, tile, part);
      line(static_cast<const std::byte*>(stage.bias) + number * (stage.kind == StageKind::adds ? 4 : 2));
    }
    if (stage.kind == StageKind::adds && lane == 2) {
      line(stage.norm + tile * tile_outputs);
    }
    if (stage.kind == StageKind::convolves) {
      const int channel = tile * tile_outputs;
      using Convolution = typename Block::Convolution;
      const auto states = this->template states<Convolution>(stage, this->in_.channels);
      using E = typename Block::E;
      if (lane == 2) {
        line(static_cast<const E*>(stage.filter) + channel * Convolution::kernel_width);
      } else if (lane == 3 && stage.filter_bias != nullptr) {
        line(static_cast<const E*>(stage.filter_bias) + channel);
      } else if (const int row = lane - step_rows; row >= 0 && row < this->in_.rows && states.has_slot(row)) {
        line(states.pool.head(states.slot(row), channel));
      }
    }
  }
  template <class Config>
  __device__ void prefetch_states(const Stage& stage, int heads) const {
    using Format = jrt::StateFormatOf<Config>;
    constexpr auto bytes = Format::head_elements * static_cast<std::int64_t>(sizeof(typename Format::Scalar));
    const auto states = this->template states<Config>(stage, heads);
    this->each_head(heads, [&](int row, int head) {
      if (states.has_slot(row)) {
        jrt::prefetch_lines(states.pool.head(states.slot(row), head), bytes, this->lane(), 32);
      }
    });
  }

  /// Passes on slots to a window.
  __device__ void lend() {
    using namespace jrt::detail::cuda;
    const int count = this->parameters_.window_slots;
    for (int left = count == 0 ? 0 : this->slots_passed_by() + count; left > 0; --left) {
      barrier_wait(this->empty(this->place_.slot), this->place_.round ^ 1);
      barrier_expect(this->full(this->place_.slot), 0);
      this->place_.advance(this->parameters_.ring_slots);
    }
  }

  std::uint64_t policy_ = 0;
};

}  // namespace jrt_lm
