// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <benchmark/benchmark.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <jrt/cuda.cuh>
#include <string>
#include <thread>
#include <utility>
#include <vector>

/// What the benchmarks on the GPU share: memory, random data, and time by CUDA events with cold caches.
namespace jrt::bench {

/// Ends the program with the runtime's words.
void require(cudaError_t error, const char* what);
void require(const Status& status);

/// Ends one benchmark. The others still run, and the program fails at the end.
void fail(benchmark::State& state, const std::string& reason);
bool any_failed();

/// Device memory of `count` elements, not initialised.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::int64_t count) : bytes_(static_cast<std::size_t>(count) * sizeof(T)) {
    require(cudaMalloc(&data_, std::max<std::size_t>(bytes_, 1)), "device memory");
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(static_cast<std::int64_t>(values.size())) {
    require(cudaMemcpy(data_, values.data(), bytes_, cudaMemcpyHostToDevice), "copy to the device");
  }
  DeviceArray(DeviceArray&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  DeviceArray& operator=(DeviceArray&&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(bytes_ / sizeof(T)); }

  /// Fills the array with bytes that are not a number in any element type, so that what nobody writes is noticed.
  void poison() const {
    require(cudaMemset(data_, 0xff, bytes_), "poison");
    require(cudaDeviceSynchronize(), "poison");
  }

 private:
  T* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Device memory of `count` normally distributed numbers: float, Half or BFloat16.
template <class T>
DeviceArray<T> random_array(std::int64_t count, unsigned seed);

/// Which kernels are timed: all that the library chooses, or with JRT_BENCH_KERNELS=portable those that run everywhere.
CudaKernels timed_kernels();

/// The stream on which everything is timed.
const Cuda& timed_stream();

/// Bytes per second, read and written, that a large copy within device memory moves; measured once.
double copy_bandwidth();

/// Overwrites the cache, so that the next kernel finds nothing of its data there.
void flush_cache();

/// Work enqueued on the timed stream, captured once, to be replayed.
class CapturedGraph {
 public:
  template <class Enqueue>
  explicit CapturedGraph(const Enqueue& enqueue) {
    begin();
    enqueue();
    end();
  }
  CapturedGraph(const CapturedGraph&) = delete;
  CapturedGraph& operator=(const CapturedGraph&) = delete;
  ~CapturedGraph();
  void replay() const;

 private:
  static void begin();
  void end();

  cudaGraphExec_t executable_ = nullptr;
};

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

/// What one call does at least.
struct Work {
  double bytes = 0;       ///< each input read once, each output written once
  double operations = 0;  ///< floating-point operations of the operator itself; 0 where they do not matter
  double tokens = 0;
};

/// Reports the median of the times, in milliseconds, and what it says about the work. (Google Benchmark's own number is
/// the mean.)
void report(benchmark::State& state, const Work& work, std::vector<float> times);

/// Times `run()`, which makes `calls` calls of this work, as often as the benchmark says, with cold caches each time.
template <class Run>
void time_calls(benchmark::State& state, const Work& work, const Run& run, std::int64_t calls = 1) {
  // What ran before has used up some of the power that the board may draw, and heated it: every row starts rested.
  std::this_thread::sleep_for(std::chrono::milliseconds(250));
  for (int i = 0; i < 3; ++i) {
    run();
  }
  std::vector<float> times;
  for (auto _ : state) {
    flush_cache();
    times.push_back(milliseconds(run) / static_cast<float>(calls));
    state.SetIterationTime(1e-3 * static_cast<double>(times.back()));
  }
  report(state, work, std::move(times));
}

}  // namespace jrt::bench
