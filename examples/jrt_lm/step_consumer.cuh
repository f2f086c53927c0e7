// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <jrt/detail/cuda/core/threads.cuh>

#include "jrt_lm/step_mixers.cuh"

namespace jrt_lm {

/// The warps that work through the stages.
template <class Shape>
class StepConsumer : StepMixers<Shape> {
  using Mixers = StepMixers<Shape>;
  using E = typename Shape::E;
  static constexpr int units = Shape::tiles_at_once(StageKind::logits);
  static_assert(units <= step_candidates);

 public:
  __device__ StepConsumer(const StepParameters<Shape::Window::head_dim>& parameters, std::byte* shared, std::uint32_t steps)
      : Mixers(parameters, shared, steps) {}

  __device__ __forceinline__ void run() {
    for (this->stage_ = 0; this->stage_ < this->in_.stage_count; ++this->stage_) {
      const Stage stage = this->stages_[this->stage_];
      this->clock_.begin(this->stage_);
      switch (stage.kind) {
        case StageKind::embed:
          embed(stage);
          break;
        case StageKind::stores:
          this->template product<StageKind::stores>(stage);
          break;
        case StageKind::convolves:
          this->template product<StageKind::convolves>(stage);
          break;
        case StageKind::rotates:
          this->template product<StageKind::rotates>(stage);
          break;
        case StageKind::gates:
          this->template product<StageKind::gates>(stage);
          break;
        case StageKind::adds:
          this->template product<StageKind::adds>(stage);
          break;
        case StageKind::linear:
          this->attend_linearly(stage);
          break;
        case StageKind::window:
          this->attend_in_window(stage);
          break;
        case StageKind::logits:
          this->best_ = {-INFINITY, INT32_MAX};
          this->template product<StageKind::logits>(stage);
          store_candidates();
          break;
        case StageKind::likeliest:
          find_likeliest(stage);
          break;
      }
      this->clock_.note(this->stage_, StepMoment::ends);
    }
  }

 private:
  __device__ void embed(const Stage& stage) {
    using Item = StepItem<Shape, StageKind::embed>;
    const Item item(this->thread());
    const int step = Item::tiles * this->blocks_;
    for (int first = stage.first_tile, round = 0; first < stage.tiles; first += step, ++round) {
      const int tile = first + item.unit * this->blocks_;
      const int column = tile * tile_outputs + item.within;
      const bool active = this->thread() < Item::count && item.row < this->in_.rows && tile < stage.tiles;
      float number = 0;
      float norm = 0;
      if (active) {
        number = jrt::convert<float>(
            static_cast<const E*>(stage.weight)[std::int64_t{this->prepared_.tokens[item.row]} * stage.outputs + column]);
        norm = stage.norm[column];
        this->residual(round * Item::tiles + item.unit, item) = number;
      }
      this->store_residual(stage, active, tile, item.row, item.within, number, norm);
    }
  }

  // -- the likeliest token -----------------------------------------------------------------------------------------------

  template <int lanes>
  static __device__ StepCandidate likeliest_of(StepCandidate best) {
#pragma unroll
    for (int distance = 1; distance < lanes; distance *= 2) {
      const StepCandidate other{__shfl_xor_sync(~0U, best.logit, distance), __shfl_xor_sync(~0U, best.token, distance)};
      best = likelier(best, other);
    }
    return best;
  }
  /// Some of each row and block.
  __device__ void store_candidates() const {
    const StepCandidate best = likeliest_of<tile_outputs>(this->best_);
    const StepItem<Shape, StageKind::logits> item(this->thread());
    if (item.within == 0 && item.unit < units && item.row < this->in_.rows) {
      const auto words = std::uint64_t{__float_as_uint(best.logit)} | std::uint64_t{static_cast<unsigned>(best.token)}
                                                                          << 32;
      store_exchanged_pair(candidates(item.row) + units * this->block_ + item.unit, words);
    }
  }
  [[nodiscard]] __device__ std::uint64_t* candidates(int row) const {
    return this->template exchanged<std::uint64_t>(this->in_.candidates) + row * units * this->blocks_;
  }
  __device__ void find_likeliest(const Stage& stage) {
    auto* const of_warps = reinterpret_cast<StepCandidate*>(this->work_);
    for (int row = this->first_result() + this->block_; row < this->in_.rows; row += this->blocks_) {
      StepCandidate best{-INFINITY, INT32_MAX};
      for (int i = this->thread(); i < units * this->blocks_; i += step_consumers) {
        std::uint64_t words = ~std::uint64_t{0};
        while (static_cast<std::uint32_t>(words) == ~0U) {
          words = load_exchanged_pair(candidates(row) + i);
        }
        best = likelier(best, {__uint_as_float(static_cast<std::uint32_t>(words)), static_cast<std::int32_t>(words >> 32)});
      }
      best = likeliest_of<32>(best);
      this->sync();
      if (this->lane() == 0) {
        of_warps[this->warp()] = best;
      }
      this->sync();
      if (this->warp() == 0) {
        best = likeliest_of<step_warps>(of_warps[this->lane() % step_warps]);
        if (this->lane() == 0) {
          static_cast<std::int32_t*>(stage.result)[row - this->first_result()] = best.token;
        }
      }
    }
  }
};

}  // namespace jrt_lm
