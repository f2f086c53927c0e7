// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <jrt/cuda.cuh>
#include <utility>
#include <vector>

#include "support/tensor.hpp"

namespace jrt::test {

inline void require_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    std::abort();  // nothing that follows on this device means anything
  }
}

/// Device memory, filled from and read back as a vector. Both wait for the whole device: a stream that does not wait for
/// the default one must find its inputs there.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(const std::vector<T>& values) : count_(values.size()) {
    require_cuda(cudaMalloc(&memory_, count_ == 0 ? 1 : count_ * sizeof(T)), "cudaMalloc");
    require_cuda(cudaMemcpy(memory_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), "copy to the device");
    require_cuda(cudaDeviceSynchronize(), "synchronize");
  }
  DeviceArray(DeviceArray&& other) noexcept { *this = std::move(other); }
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(count_, other.count_);
    return *this;
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() {
    if (memory_ != nullptr) {
      require_cuda(cudaDeviceSynchronize(), "synchronize");
      require_cuda(cudaFree(memory_), "cudaFree");
    }
  }

  T* data() { return static_cast<T*>(memory_); }
  [[nodiscard]] std::vector<T> read() const {
    std::vector<T> values(count_);
    require_cuda(cudaDeviceSynchronize(), "synchronize");
    require_cuda(cudaMemcpy(values.data(), memory_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "copy to the host");
    return values;
  }

 private:
  void* memory_ = nullptr;
  std::size_t count_ = 0;
};

/// Which kernels are tested: all that the backend chooses, or with JRT_TEST_KERNELS=portable those that run everywhere.
inline CudaKernels tested_kernels() {
  const char* const name = std::getenv("JRT_TEST_KERNELS");
  return name != nullptr && std::strcmp(name, "portable") == 0 ? CudaKernels::portable : CudaKernels::automatic;
}

/// Whether this operator has kernels of its own for the architecture, compiled and with a device for them.
template <class Config>
bool has_own_kernels() {
  if constexpr (detail::cuda::targets_hopper && detail::cuda::HopperLayout<Config>::supported) {
    return detail::cuda::HopperPrefill<Config>::available(Cuda{});
  } else {
    return false;
  }
}

/// Whether tensors of this layout are read by the kernels that read aligned ones.
template <class Config>
bool same_kernels_as_aligned(Layout layout) {
  const bool own_kernels = tested_kernels() == CudaKernels::automatic && has_own_kernels<Config>();
  return !own_kernels || layout == Layout::bthd || layout == Layout::bhtd;
}

/// How many columns a thread has in one access, and with it the order of sums over rows, depends on the state's type.
inline constexpr bool same_sums_for_all_state_types = false;

/// The default stream.
struct Simple {
  static constexpr bool host_reads_arrays = false;
  template <class T>
  using Array = DeviceArray<T>;

  static Cuda execution() { return Cuda{nullptr, tested_kernels()}; }
  static std::int64_t workers() { return execution().multiprocessors(); }
};

/// A stream that does not wait for the default one.
struct Concurrent {
  static constexpr bool host_reads_arrays = false;
  template <class T>
  using Array = DeviceArray<T>;

  static Cuda execution() {
    static const cudaStream_t stream = [] {
      cudaStream_t created = nullptr;
      require_cuda(cudaStreamCreateWithFlags(&created, cudaStreamNonBlocking), "stream");
      return created;
    }();
    return Cuda{stream, tested_kernels()};
  }
  static std::int64_t workers() { return execution().multiprocessors(); }
};

/// Lengths at which something ends: fragments of the matrix unit, chunks of either engine.
inline std::vector<std::int64_t> edge_lengths() {
  return {0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 96, 127, 128, 129, 200};
}

}  // namespace jrt::test
