// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <jrt/cuda.cuh>
#include <stdexcept>
#include <vector>

namespace support {

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(cudaGetErrorString(error));
  }
}

inline bool has_gpu() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
}

/// Where a run's tensors are and how it waits for results: all that differs from the CPU.
struct OnGpu {
  /// Device memory, filled from and read back as a vector.
  template <class T>
  class Array {
   public:
    explicit Array(const std::vector<T>& values) : count_(values.size()) {
      check_cuda(cudaMalloc(&data_, count_ * sizeof(T)));
      check_cuda(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
    }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    ~Array() { cudaFree(data_); }
    T* data() { return static_cast<T*>(data_); }
    [[nodiscard]] std::vector<T> read() const {
      std::vector<T> values(count_);
      check_cuda(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
      return values;
    }

   private:
    void* data_ = nullptr;
    std::size_t count_;
  };

  static jrt::Cuda execution() { return jrt::Cuda{}; }
  static void wait() { check_cuda(cudaDeviceSynchronize()); }
};

}  // namespace support
