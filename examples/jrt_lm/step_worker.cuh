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
  // Of x, of a whole stage. They are read before the stage's outputs are stored, and written again when a later stage's x
  // is there, which comes from all outputs of all rows: no barrier is needed between. Of a prompt two stages may have the
  // same x: they have theirs in turn.
  float squares[Shape::several ? 2 : 1][step_warps][Shape::rows];
  /// Of a convolution, of each thread, where rows may be tokens of the same sequence; of two rounds in turn.
  typename Shape::E inputs[2][Shape::several ? step_consumers : 1];
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
  [[nodiscard]] __device__ int squares_buffer() const { return Shape::several ? stage_ % 2 : 0; }
  static __device__ void sync() { jrt::detail::cuda::named_barrier(step_barrier, step_consumers); }

  /// Waits, as a warp, for `count` numbers of an exchange. After a barrier other threads may read them as any memory.
  static __device__ void await_numbers(const E* from, int count) {
    const auto begin = reinterpret_cast<std::uintptr_t>(from) / sizeof(uint4) * sizeof(uint4);
    const auto end = reinterpret_cast<std::uintptr_t>(from + count);
    for (std::uintptr_t at = begin + static_cast<unsigned>(thread() % 32) * sizeof(uint4); at < end;
         at += 32 * sizeof(uint4)) {
      while (is_absent16(load_exchanged(reinterpret_cast<const void*>(at)))) {
      }
    }
    acquire_exchanged();
  }

  std::byte* work_;
  int stage_ = 0;
  int buffer_ = 0;  ///< of sums
  [[no_unique_address]] StepClock clock_;
};

}  // namespace jrt_lm
