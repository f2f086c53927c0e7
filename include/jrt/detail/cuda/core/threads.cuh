// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/abi.hpp"

/// Which threads of a block work together on something: a type with their number `threads`, whole warps that lie behind one
/// another; the number `rank()` of the calling thread among them; and `sync()`, a barrier of them all, which also orders
/// their accesses to memory as __syncthreads does. Bodies of steps take it as a parameter, so that kernels of their own and
/// kernels of an engine run the same code.
namespace jrt {
inline namespace JRT_DETAIL_CUDA_ABI {

/// All `count` threads of a block of one dimension.
template <int count>
struct WholeBlock {
  static constexpr int threads = count;
  [[nodiscard]] __device__ static int rank() { return static_cast<int>(threadIdx.x); }
  __device__ static void sync() { __syncthreads(); }
};

/// `count` threads of a block, from thread `first` on, a multiple of 32; `barrier` is one of the block's 16 named barriers
/// that nobody else uses meanwhile, barrier 0 being that of __syncthreads.
template <int count>
struct BlockPart {
  static_assert(count % 32 == 0, "BlockPart: count must be a multiple of 32, because barriers count whole warps.");
  static constexpr int threads = count;
  int first = 0;
  int barrier = 1;

  [[nodiscard]] __device__ int rank() const { return static_cast<int>(threadIdx.x) - first; }
  __device__ void sync() const { asm volatile("bar.sync %0, %1;" : : "r"(barrier), "n"(count) : "memory"); }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt
