// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

/// Kernels that start while the one before them in the stream is still running: they load what nobody writes (weights),
/// then wait ("programmatic dependent launch"). In a decode step, whose kernels are shorter than a launch and its first
/// loads, that is most of the time.
namespace jrt_lm {

/// In a kernel: the next one may start where this one leaves room, if it was launched to start early.
__device__ inline void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
#endif
}

/// In a kernel that may have started early: until the kernel before is over and what it has written is visible.
__device__ inline void await_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}

/// Launches a kernel, early where its code can wait: code compiled for older GPUs cannot, and would run too soon.
template <class... Parameters, class... Arguments>
cudaError_t launch_early(void (*kernel)(Parameters...), std::int64_t blocks, int threads, cudaStream_t stream,
                         const Arguments&... arguments) {
  cudaFuncAttributes attributes{};
  if (const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel); error != cudaSuccess) {
    return error;
  }
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = attributes.ptxVersion >= 90 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace jrt_lm
