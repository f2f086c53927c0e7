// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <jrt/detail/cuda/core/sm90/instructions.cuh>

#include "jrt_lm/step_block.cuh"
#include "jrt_lm/step_timing.cuh"

namespace jrt_lm {

/// Sums of the warps, of two rounds in turn, so that a round needs one barrier.
template <class Shape>
struct StepSums {
  float partial[2][step_parts][step_warps][Shape::row_blocks][tile_outputs][8];
  float squares[2][step_warps][Shape::rows];  ///< of x, of stages in turn
};

/// One of the threads of the warps that multiply.
template <class Shape>
class StepWorker : protected StepBlock<Shape> {
 protected:
  using Block = StepBlock<Shape>;
  using E = typename Block::E;

  __device__ StepWorker(const typename Block::Parameters& parameters, std::byte* shared, std::uint32_t steps)
      : Block(parameters, shared, steps), work_(shared + parameters.work_offset) {}

  [[nodiscard]] static __device__ int thread() { return static_cast<int>(threadIdx.x); }
  [[nodiscard]] static __device__ int warp() { return thread() / 32; }
  [[nodiscard]] __device__ StepSums<Shape>& sums() const { return *reinterpret_cast<StepSums<Shape>*>(work_); }
  static __device__ void sync() { jrt::detail::cuda::named_barrier(step_barrier, step_consumers); }

  std::byte* work_;
  int stage_ = 0;
  int buffer_ = 0;  ///< of sums
  [[no_unique_address]] StepClock clock_;
};

}  // namespace jrt_lm
