// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

/// How the blocks of a step wait for one another: each adds one to a number in global memory when it has written its part
/// of a stage (with release, after a barrier of its threads), and one thread of each reads it (with acquire) until all
/// have, before a barrier lets the others go on. The number only grows within a step; the last block to leave sets it to 0
/// for the next one.
namespace jrt_lm {

__device__ inline std::uint32_t arrived(const std::uint32_t* arrivals) {
  std::uint32_t count;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(arrivals) : "memory");
  return count;
}
__device__ inline void arrive(std::uint32_t* arrivals) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" : : "l"(arrivals) : "memory");
}

}  // namespace jrt_lm
