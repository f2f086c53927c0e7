// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <jrt/detail/cuda/core/threads.cuh>

#include "jrt_lm/step_mixers.cuh"

namespace jrt_lm {

/// The 16 warps that work through the stages.
template <class Convolution, class Linear, class Window>
class StepConsumer : StepMixers<Convolution, Linear, Window> {
  using Mixers = StepMixers<Convolution, Linear, Window>;
  using E = typename Mixers::Products::E;

 public:
  __device__ StepConsumer(const StepParameters<Window::head_dim>& parameters, std::byte* shared)
      : Mixers(parameters, shared) {}

  __device__ __forceinline__ void run() {
    for (this->stage_ = 0; this->stage_ < this->in_.stage_count; ++this->stage_) {
      // Otherwise what follows from it for each kind of stage would stay in registers through all of them.
      this->thread_ = static_cast<int>(jrt::detail::cuda::computed_afresh(threadIdx.x));
      const Stage& stage = this->stages_[this->stage_];
      switch (stage.kind) {
        case StageKind::embed:
          embed(stage);
          break;
        case StageKind::stores:
          this->template normed_product<StageKind::stores>(stage);
          break;
        case StageKind::convolves:
          this->template normed_product<StageKind::convolves>(stage);
          break;
        case StageKind::rotates:
          this->template normed_product<StageKind::rotates>(stage);
          break;
        case StageKind::gates:
          this->template normed_product<StageKind::gates>(stage);
          break;
        case StageKind::adds:
          this->added_product(stage);
          break;
        case StageKind::linear:
          this->attend_linearly(stage);
          break;
        case StageKind::window:
          this->attend_in_window(stage);
          break;
        case StageKind::logits:
          this->template normed_product<StageKind::logits>(stage);
          store_candidates();
          break;
        case StageKind::likeliest:
          find_likeliest(stage);
          break;
      }
      this->sync();
      this->clock_.note(this->stage_, StepMoment::ends);
      if (this->stage_ + 1 < this->in_.stage_count && this->thread() == 0) {
        arrive(this->in_.arrivals);
      }
    }
    this->leave();
  }

 private:
  __device__ void embed(const Stage& stage) const {
    for (int row = this->block_; row < this->in_.rows; row += this->blocks_) {
      const E* const from = static_cast<const E*>(stage.weight) + std::int64_t{this->in_.tokens[row]} * stage.in;
      auto* const to = static_cast<float*>(stage.y) + row * stage.y_columns;
      for (int c = this->thread(); c < stage.in; c += step_consumers) {
        to[c] = jrt::convert<float>(from[c]);
      }
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
  /// Four of each row and block.
  __device__ void store_candidates() const {
    const StepCandidate best = likeliest_of<tile_outputs>(this->best_);
    const int unit = this->thread() / (step_rows * tile_outputs);
    const int row = this->thread() / tile_outputs % step_rows;
    if (this->thread() % tile_outputs == 0 && row < this->in_.rows) {
      candidates(row)[step_at_once * this->block_ + unit] = best;
    }
  }
  [[nodiscard]] __device__ StepCandidate* candidates(int row) const {
    return static_cast<StepCandidate*>(this->in_.candidates) + row * step_at_once * this->blocks_;
  }
  __device__ void find_likeliest(const Stage& stage) {
    this->await_stages();
    auto* const of_warps = reinterpret_cast<StepCandidate*>(this->work_);
    for (int row = this->block_; row < this->in_.rows; row += this->blocks_) {
      StepCandidate best{-INFINITY, INT32_MAX};
      for (int i = this->thread(); i < step_at_once * this->blocks_; i += step_consumers) {
        const float2 words = __ldcg(reinterpret_cast<const float2*>(candidates(row) + i));
        best = likelier(best, {words.x, __float_as_int(words.y)});
      }
      best = likeliest_of<32>(best);
      if (this->lane() == 0) {
        of_warps[this->warp()] = best;
      }
      this->sync();
      if (this->warp() == 0) {
        best = likeliest_of<step_warps>(of_warps[this->lane() % step_warps]);
        if (this->lane() == 0) {
          static_cast<std::int32_t*>(stage.y)[row] = best.token;
        }
      }
      this->sync();
    }
  }
};

}  // namespace jrt_lm
