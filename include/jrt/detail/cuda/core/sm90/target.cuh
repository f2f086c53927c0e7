// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>

#include "jrt/detail/abi.hpp"

/// Kernels that exist only for sm_90a, in programs that are compiled for other architectures, too.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Whether this is the compilation for sm_90a itself; others get empty kernels, which the host recognises.
inline constexpr bool compiling_for_hopper =
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    true;
#else
    false;
#endif

/// Whether sm_90 (or sm_90a) is among the architectures that this translation unit is compiled for.
inline constexpr bool targets_hopper = [] {
#if defined(__CUDA_ARCH_LIST__)
  for (const int architecture : {__CUDA_ARCH_LIST__}) {
    if (architecture == 900) {
      return true;
    }
  }
#endif
  return false;
}();

/// Launch bound by which the host tells an empty kernel from a real one.
inline constexpr int empty_kernel_threads = 32;
template <int threads>
inline constexpr int hopper_threads = compiling_for_hopper ? threads : empty_kernel_threads;

/// Whether `kernel`, of `threads` threads, is not empty on the current device.
template <auto kernel, int threads>
bool kernel_exists() {
  static std::atomic<bool> known = false;  // a failed query is not cached
  if (!known) {
    cudaFuncAttributes attributes{};
    if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return false;
    }
    known = attributes.maxThreadsPerBlock >= threads;
  }
  return known;
}

extern __shared__ __align__(1024) std::byte hopper_shared_memory[];

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
