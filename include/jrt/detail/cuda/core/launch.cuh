// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/early_start.cuh"
#include "jrt/execution/cuda.cuh"
#include "jrt/status.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

inline Status device_status(const char* operation, cudaError_t error) {
  return error == cudaSuccess ? Status{}
                              : Status::error(StatusCode::device_error, "%s: %s (%s).", operation,
                                              cudaGetErrorString(error), cudaGetErrorName(error));
}

/// A grid of one dimension; `blocks` may be 0.
struct Grid {
  std::int64_t blocks = 0;
  int threads = 0;
  std::size_t shared_bytes = 0;
  /// Blocks may start before the previous kernel of the stream has completed; they call `await_previous_kernel`.
  bool starts_early = false;
};

/// Whether a kernel's code for the current device can wait for the previous kernel: code for older architectures lacks the
/// instruction and may not start early.
template <auto kernel>
bool can_start_early(const Cuda& on) {
  if (on.compute_capability() < 90) {
    return false;
  }
  constexpr int unknown = -1;
  static std::atomic<int> version = unknown;  // the same on all such devices; a failed query is not cached
  if (version == unknown) {
    cudaFuncAttributes attributes{};
    if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return false;
    }
    version = attributes.ptxVersion;
  }
  return version >= 90;
}

/// Enqueues a kernel, with as much dynamic shared memory as it needs.
template <class... Parameters>
Status launch(const char* operation, void (*kernel)(Parameters...), const Grid& grid, const Cuda& on,
              const Parameters&... parameters) {
  if (on.error() != cudaSuccess) {
    return device_status(operation, on.error());
  }
  if (grid.blocks == 0) {
    return {};
  }
  if (grid.blocks > INT32_MAX) {
    return Status::error(StatusCode::invalid_argument, "%s: the call needs %lld blocks, but a launch can have %d.",
                         operation, static_cast<long long>(grid.blocks), INT32_MAX);
  }
  constexpr std::size_t without_asking = 48 * 1024;
  cudaError_t error = cudaSuccess;
  if (grid.shared_bytes > without_asking) {
    if (grid.shared_bytes > static_cast<std::size_t>(on.shared_bytes_per_block())) {
      return Status::error(StatusCode::device_error,
                           "%s: the kernel needs %zu bytes of shared memory per block, but the device has %d.", operation,
                           grid.shared_bytes, on.shared_bytes_per_block());
    }
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared_bytes));
  }
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
    config.blockDim = dim3(static_cast<unsigned>(grid.threads));
    config.dynamicSmemBytes = grid.shared_bytes;
    config.stream = on.stream();
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &early;
    config.numAttrs = grid.starts_early ? 1 : 0;
    error = cudaLaunchKernelEx(&config, kernel, parameters...);
  }
  if (error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // reported here, not by the caller's next check
  }
  return device_status(operation, error);
}

/// Runs `operation(workspace)` with stream-ordered memory: allocated before and freed after the work that it enqueues.
template <class Operation>
Status with_stream_workspace(const char* name, std::size_t bytes, const Cuda& on, const Operation& operation) {
  if (on.error() != cudaSuccess) {
    return device_status(name, on.error());
  }
  void* memory = nullptr;
  if (bytes != 0) {
    const cudaError_t error = cudaMallocAsync(&memory, bytes, on.stream());
    if (error != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return error == cudaErrorMemoryAllocation
                 ? Status::error(StatusCode::out_of_memory, "%s: no device memory for %zu bytes.", name, bytes)
                 : device_status(name, error);
    }
  }
  const Status status = operation(Workspace{memory, bytes});
  if (memory == nullptr) {
    return status;
  }
  const Status freed = device_status(name, cudaFreeAsync(memory, on.stream()));
  return status.ok() ? freed : status;
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
