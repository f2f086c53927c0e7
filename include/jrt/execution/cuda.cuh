// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "jrt/detail/abi.hpp"

namespace jrt {

/// Which kernels a call may use. Results differ in their last bits.
enum class CudaKernels {
  automatic,  ///< the fastest available for operator, device and tensors
  portable,   ///< those that run on every GPU
};

inline namespace JRT_DETAIL_CUDA_ABI {

/// Execution argument: run on the current CUDA device, ordered in `stream`. Tensors, states, workspace and the int32 arrays
/// are in memory that the device can read; calls return when the work is enqueued, synchronise nothing and can be captured
/// in a CUDA graph (except save_states and load_states, which copy from and to host memory).
///
/// Construct it once and reuse it: the constructor queries device properties from the runtime. A runtime error there is
/// reported by the first call that uses the object.
class Cuda {
 public:
  explicit Cuda(cudaStream_t stream = nullptr, CudaKernels kernels = CudaKernels::automatic)
      : stream_(stream), kernels_(kernels) {
    int device = 0;
    int major = 0;
    int minor = 0;
    error_ = cudaGetDevice(&device);
    const auto read = [&](cudaDeviceAttr attribute, int& value) {
      if (error_ == cudaSuccess) {
        error_ = cudaDeviceGetAttribute(&value, attribute, device);
      }
    };
    read(cudaDevAttrMultiProcessorCount, multiprocessors_);
    read(cudaDevAttrMaxSharedMemoryPerBlockOptin, shared_bytes_);
    read(cudaDevAttrReservedSharedMemoryPerBlock, reserved_shared_bytes_);
    read(cudaDevAttrComputeCapabilityMajor, major);
    read(cudaDevAttrComputeCapabilityMinor, minor);
    compute_capability_ = 10 * major + minor;
    if (error_ != cudaSuccess) {
      static_cast<void>(cudaGetLastError());  // the first call reports it, not the caller's next check
    }
  }

  /// The same stream and device with another choice of kernels; queries nothing.
  [[nodiscard]] Cuda with(CudaKernels kernels) const {
    Cuda other = *this;
    other.kernels_ = kernels;
    return other;
  }

  [[nodiscard]] cudaStream_t stream() const { return stream_; }
  [[nodiscard]] CudaKernels kernels() const { return kernels_; }
  /// Compute capability of the device, as 10 * major + minor.
  [[nodiscard]] int compute_capability() const { return compute_capability_; }
  [[nodiscard]] int multiprocessors() const { return multiprocessors_; }
  /// Largest shared memory of a block, in bytes.
  [[nodiscard]] int shared_bytes_per_block() const { return shared_bytes_; }
  /// Shared memory of each block that CUDA reserves, in bytes.
  [[nodiscard]] int reserved_shared_bytes() const { return reserved_shared_bytes_; }
  [[nodiscard]] cudaError_t error() const { return error_; }

 private:
  cudaStream_t stream_;
  CudaKernels kernels_;
  cudaError_t error_ = cudaSuccess;
  int multiprocessors_ = 1;
  int shared_bytes_ = 0;
  int reserved_shared_bytes_ = 0;
  int compute_capability_ = 0;
};

}  // namespace JRT_DETAIL_CUDA_ABI

}  // namespace jrt
