// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Kernels that start while the one before them in the stream is still running ("programmatic dependent launch", CUDA
/// Programming Guide): launched with cudaLaunchAttributeProgrammaticStreamSerialization, they load what nobody writes, then
/// wait, so that their launch and those loads are over by then. The library's kernels start so where it helps; these two
/// are for an engine's own kernels between them.
///
/// Only code for sm_90 or newer can wait: a kernel whose `cudaFuncAttributes::ptxVersion` is below 90 must not be launched
/// so.
namespace jrt {

/// In a kernel: the next one, if it starts early, may do so where this one leaves room. It may read what this one writes
/// only after `await_previous_kernel`. No effect in code for older GPUs.
__device__ inline void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
#endif
}

/// In a kernel that may have started early: until the one before is over and what it has written is visible. Kernels that
/// may start early all wait, whether they need what is before or not, so that who follows one of them follows all. No
/// effect in code for older GPUs.
__device__ inline void await_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}

}  // namespace jrt
