// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

namespace jrt {

/// Execution argument: run on the current CUDA device, ordered in `stream`. Tensors, states, workspace and the int32 arrays
/// are in memory that the device can read; calls return when the work is enqueued, synchronise nothing and can be captured
/// in a CUDA graph (but for save_states and load_states, which deal with host memory).
///
/// Make it once and keep it: the constructor asks the runtime for properties of the device. A runtime error there is
/// reported by the first call that uses the object.
class Cuda {
 public:
  explicit Cuda(cudaStream_t stream = nullptr) : stream_(stream) {
    int device = 0;
    error_ = cudaGetDevice(&device);
    if (error_ == cudaSuccess) {
      error_ = cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device);
    }
    if (error_ == cudaSuccess) {
      error_ = cudaDeviceGetAttribute(&shared_bytes_, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    }
    if (error_ != cudaSuccess) {
      static_cast<void>(cudaGetLastError());  // it is reported by the first call, not by the caller's next check
    }
  }

  [[nodiscard]] cudaStream_t stream() const { return stream_; }
  [[nodiscard]] int multiprocessors() const { return multiprocessors_; }
  /// Shared memory that one block may have.
  [[nodiscard]] int shared_bytes_per_block() const { return shared_bytes_; }
  [[nodiscard]] cudaError_t error() const { return error_; }

 private:
  cudaStream_t stream_;
  cudaError_t error_ = cudaSuccess;
  int multiprocessors_ = 1;
  int shared_bytes_ = 0;
};

}  // namespace jrt
