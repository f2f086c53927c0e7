// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <jrt/detail/cuda/core/sm90/instructions.cuh>
#include <jrt/detail/cuda/core/threads.cuh>

#include "jrt_lm/step_barrier.cuh"
#include "jrt_lm/step_block.cuh"
#include "jrt_lm/step_timing.cuh"

namespace jrt_lm {

/// Sums of the warps, and what else a stage has in shared memory.
struct StepSums {
  float partial[step_at_once][step_warps][step_rows][tile_outputs];
  float squares[step_warps][step_rows];
};
/// One of the threads of the 16 warps that do everything but copying.
template <class Convolution, class Linear, class Window>
class StepWorker : protected StepBlock<Convolution, Linear, Window> {
 protected:
  using Block = StepBlock<Convolution, Linear, Window>;
  using E = typename Block::E;

  __device__ StepWorker(const typename Block::Parameters& parameters, std::byte* shared)
      : Block(parameters, shared),
        work_(shared + parameters.work_offset),
        sums_(*reinterpret_cast<StepSums*>(shared + parameters.work_offset)) {}

  [[nodiscard]] __device__ int thread() const { return thread_; }
  [[nodiscard]] __device__ int warp() const { return thread_ / 32; }
  [[nodiscard]] __device__ int lane() const { return thread_ % 32; }
  static __device__ void sync() { jrt::detail::cuda::named_barrier(step_barrier, step_consumers); }

  /// Waits until all blocks have written what belongs to the stages before this one.
  __device__ void await_stages() const {
    clock_.note(stage_, StepMoment::awaits);
    if (thread() == 0) {
      const auto all = static_cast<std::uint32_t>(stage_ * this->blocks_);
      while (arrived(this->in_.arrivals) < all) {
      }
    }
    sync();
    clock_.note(stage_, StepMoment::passes);
    clock_.note(stage_, StepMoment::reads);
  }
  /// The last block to leave makes the next step start from 0: nobody waits any more.
  __device__ void leave() const {
    if (thread() == 0) {
      __threadfence();
      if (atomicAdd(this->in_.arrivals + 1, 1U) == static_cast<unsigned>(this->blocks_) - 1) {
        this->in_.arrivals[0] = 0;
        this->in_.arrivals[1] = 0;
      }
    }
  }

  std::byte* work_;
  StepSums& sums_;
  int stage_ = 0;
  int thread_ = 0;
  [[no_unique_address]] StepClock clock_;
};

}  // namespace jrt_lm
