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
template <class Convolution, class Linear, class Window>
class StepCopier : StepBlock<Convolution, Linear, Window> {
  using Block = StepBlock<Convolution, Linear, Window>;

 public:
  using Block::Block;

  __device__ __forceinline__ void run() {
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy_));
    for (int s = 0; s < this->in_.stage_count; ++s) {
      const Stage& stage = this->stages_[s];
      if (is_product(stage.kind)) {
        if (stage.norm != nullptr && s % this->blocks_ == this->block_) {
          jrt::prefetch_lines(stage.norm, std::int64_t{4} * stage.in, this->lane(), 32);
        }
        for (int tile = first_tile(stage, this->block_, this->blocks_); tile < stage.tiles; tile += this->blocks_) {
          if (stage.kind != StageKind::logits) {
            prefetch(stage, tile);
          }
          for (int part = 0; part < tile_parts(stage.kind); ++part) {
            copy(stage, tile_row(stage, tile, part));
          }
        }
      } else if (stage.kind == StageKind::linear) {
        prefetch_states(this->linear_step(stage));
      } else if (stage.kind == StageKind::window) {
        prefetch_states(this->window_step(stage));
      }
    }
  }

 private:
  __device__ void copy(const Stage& stage, int row) {
    using namespace jrt::detail::cuda;
    const auto* const from =
        static_cast<const typename Block::E*>(stage.weight) + (std::int64_t{row} + this->lane() % tile_outputs) * stage.in;
    for (int column = 0; column < stage.in; column += piece_columns) {
      const int bytes = 2 * (stage.in - column < piece_columns ? stage.in - column : piece_columns);
      barrier_wait(this->empty(this->place_.slot), this->place_.round ^ 1);
      barrier_expect(this->full(this->place_.slot), tile_outputs * bytes);
      __syncwarp();
      if (this->lane() < tile_outputs) {
        copy_row(this->piece(this->place_.slot) + static_cast<unsigned>(this->lane() * piece_stride), from + column, bytes,
                 this->full(this->place_.slot), policy_);
      }
      this->place_.advance(this->parameters_.ring_slots);
    }
  }

  __device__ void prefetch(const Stage& stage, int tile) const {
    const int lane = this->lane();
    const auto line = [](const void* from) { jrt::prefetch_lines(from, 1, 0, 1); };
    const int part = lane % 2;
    if (lane < tile_parts(stage.kind) && stage.bias != nullptr) {
      const std::int64_t number = tile_row(stage, tile, part);
      line(static_cast<const std::byte*>(stage.bias) + number * (stage.kind == StageKind::adds ? 4 : 2));
    }
    if (stage.kind == StageKind::convolves) {
      const int channel = tile * tile_outputs;
      const auto args = this->convolution(stage);
      if (lane == 2) {
        line(args.weight + channel * Convolution::kernel_width);
      } else if (lane == 3 && args.bias != nullptr) {
        line(args.bias + channel);
      } else if (const int row = lane - step_rows; row >= 0 && row < this->in_.rows && args.source.has_slot(row)) {
        line(args.source.pool.head(args.source.slot(row), channel));
      }
    }
  }
  template <class Step>
  __device__ void prefetch_states(const Step& step) const {
    for (unsigned item = static_cast<unsigned>(this->block_); item < step.items();
         item += static_cast<unsigned>(this->blocks_)) {
      step.prefetch(item, this->lane(), 32);
    }
  }

  std::uint64_t policy_ = 0;
};

}  // namespace jrt_lm
