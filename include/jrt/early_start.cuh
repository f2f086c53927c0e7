// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Kernels that start while the previous kernel of the stream is still running ("programmatic dependent launch", CUDA
/// Programming Guide): launched with cudaLaunchAttributeProgrammaticStreamSerialization, a kernel loads data that no
/// earlier kernel writes, then waits, so that its launch and those loads overlap the previous kernel. The library launches
/// its kernels this way where it helps; these two functions are for an engine's own kernels between them.
///
/// Only code for sm_90 or newer can wait: a kernel whose `cudaFuncAttributes::ptxVersion` is below 90 must not be launched
/// this way.
namespace jrt {

/// Called in a kernel: from here on the next kernel, if it may start early, starts where this one leaves room. It may read
/// what this one writes only after `await_previous_kernel`. No effect in code for older GPUs.
__device__ inline void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
#endif
}

/// Called in a kernel that may have started early: waits until the previous kernel has completed and its writes are
/// visible. Every kernel that may start early must call it, whether it reads those writes or not, so that a kernel that
/// waits for one of them has waited for all before it. No effect in code for older GPUs.
__device__ inline void await_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}

}  // namespace jrt
