// SPDX-License-Identifier: Apache-2.0
#include "cuda/timing.cuh"

#include <cstdio>
#include <cstdlib>
#include <vector>

#include <algorithm>

namespace jrt::bench {

void require(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    std::exit(1);
  }
}

void require(const Status& status) {
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.c_str());
    std::exit(1);
  }
}

namespace {

__device__ std::uint64_t scrambled(std::uint64_t bits) {
  bits *= 0x9e3779b97f4a7c15ull;
  bits ^= bits >> 29;
  bits *= 0xbf58476d1ce4e5b9ull;
  return bits ^ (bits >> 32);
}

/// Normal numbers by the Box-Muller transformation.
template <class T>
__global__ void fill(T* values, std::int64_t count, std::uint64_t seed) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x; i < count; i += stride) {
    const std::uint64_t bits = scrambled(static_cast<std::uint64_t>(i) + (seed << 40));
    const float u = (static_cast<float>(bits >> 40) + 0.5F) * 0x1p-24F;
    const float v = static_cast<float>(bits & 0xffffff) * 0x1p-24F;
    values[i] = convert<T>(sqrtf(-2 * logf(u)) * cospif(2 * v));
  }
}

}  // namespace

template <class T>
DeviceArray<T>::DeviceArray(std::int64_t count, unsigned seed) {
  require(cudaMalloc(&data_, static_cast<std::size_t>(std::max<std::int64_t>(count, 1)) * sizeof(T)), "device memory");
  fill<<<1024, 256>>>(data_, count, seed);
  require(cudaDeviceSynchronize(), "random data");
}
template class DeviceArray<float>;
template class DeviceArray<Half>;
template class DeviceArray<BFloat16>;

const Cuda& timed_stream() {
  static const Cuda on = [] {
    cudaStream_t stream = nullptr;
    require(cudaStreamCreate(&stream), "stream");
    return Cuda{stream};
  }();
  return on;
}

double copy_bandwidth() {
  static const double bandwidth = [] {
    constexpr std::size_t bytes = std::size_t{2} << 30;
    DeviceArray<float> from(bytes / sizeof(float));
    DeviceArray<float> to(bytes / sizeof(float));
    std::vector<float> times;
    for (int i = 0; i < 25; ++i) {
      times.push_back(milliseconds([&] {
        require(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, timed_stream().stream()), "copy");
      }));
    }
    std::nth_element(times.begin(), times.begin() + 12, times.end());
    return 2.0 * static_cast<double>(bytes) / (1e-3 * static_cast<double>(times[12]));
  }();
  return bandwidth;
}

void flush_cache() {
  constexpr std::size_t bytes = std::size_t{256} << 20;
  static DeviceArray<float> scratch(bytes / sizeof(float));
  require(cudaMemsetAsync(scratch.data(), 0, bytes, timed_stream().stream()), "flush");
}

}  // namespace jrt::bench
