// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <benchmark/benchmark.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <jrt/cuda.cuh>

/// What the benchmarks on the GPU share: memory, random data, and time by CUDA events with cold caches.
namespace jrt::bench {

/// Ends the program with the runtime's words.
void require(cudaError_t error, const char* what);
void require(const Status& status);

/// Device memory of `count` elements, filled with normally distributed numbers.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::int64_t count, unsigned seed = 1);
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }
  [[nodiscard]] T* data() const { return data_; }

 private:
  T* data_ = nullptr;
};

/// The stream on which everything is timed.
const Cuda& timed_stream();

/// Bytes per second, read and written, that a large copy within device memory moves; measured once.
double copy_bandwidth();

/// Overwrites the cache, so that the next kernel finds nothing of its data there.
void flush_cache();

/// Milliseconds that `run()`, which enqueues on the timed stream, takes there.
template <class Run>
float milliseconds(const Run& run) {
  static cudaEvent_t begin = nullptr;
  static cudaEvent_t end = nullptr;
  if (begin == nullptr) {
    require(cudaEventCreate(&begin), "event");
    require(cudaEventCreate(&end), "event");
  }
  const cudaStream_t stream = timed_stream().stream();
  require(cudaEventRecord(begin, stream), "event");
  run();
  require(cudaEventRecord(end, stream), "event");
  require(cudaEventSynchronize(end), "timed work");
  float time = 0;
  require(cudaEventElapsedTime(&time, begin, end), "event");
  return time;
}

/// Reports what was moved and computed per iteration.
inline void report(benchmark::State& state, double bytes, double operations) {
  using benchmark::Counter;
  state.counters["GB/s"] = Counter(bytes * 1e-9, Counter::kIsIterationInvariantRate);
  state.counters["of_copy"] = Counter(bytes / copy_bandwidth(), Counter::kIsIterationInvariantRate);
  if (operations > 0) {
    state.counters["TFLOP/s"] = Counter(operations * 1e-12, Counter::kIsIterationInvariantRate);
  }
}

}  // namespace jrt::bench
