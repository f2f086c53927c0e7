// SPDX-License-Identifier: Apache-2.0
#include "cuda/timing.cuh"

#include <cstdio>
#include <cstdlib>
#include <cstring>

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

bool failed = false;

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

float median(std::vector<float>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

void fail(benchmark::State& state, const std::string& reason) {
  failed = true;
  state.SkipWithError(reason.c_str());
}

bool any_failed() {
  return failed;
}

template <class T>
DeviceArray<T> random_array(std::int64_t count, unsigned seed) {
  DeviceArray<T> array(count);
  fill<<<1024, 256>>>(array.data(), count, seed);
  require(cudaGetLastError(), "random data");
  require(cudaDeviceSynchronize(), "random data");
  return array;
}
template DeviceArray<float> random_array(std::int64_t, unsigned);
template DeviceArray<Half> random_array(std::int64_t, unsigned);
template DeviceArray<BFloat16> random_array(std::int64_t, unsigned);

CudaKernels timed_kernels() {
  const char* const name = std::getenv("JRT_BENCH_KERNELS");
  return name != nullptr && std::strcmp(name, "portable") == 0 ? CudaKernels::portable : CudaKernels::automatic;
}

const Cuda& timed_stream() {
  static const Cuda on = [] {
    cudaStream_t stream = nullptr;
    require(cudaStreamCreate(&stream), "stream");
    return Cuda{stream, timed_kernels()};
  }();
  return on;
}

double copy_bandwidth() {
  static const double bandwidth = [] {
    constexpr std::size_t bytes = std::size_t{2} << 30;
    const auto from = random_array<float>(bytes / sizeof(float), 1);
    const DeviceArray<float> to(bytes / sizeof(float));
    const auto copy = [&] {
      require(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, timed_stream().stream()), "copy");
    };
    std::vector<float> times;
    for (int i = 0; i < 25; ++i) {
      times.push_back(milliseconds(copy));
    }
    return 2.0 * static_cast<double>(bytes) / (1e-3 * static_cast<double>(median(times)));
  }();
  return bandwidth;
}

void flush_cache() {
  constexpr std::size_t bytes = std::size_t{256} << 20;
  static const DeviceArray<float> scratch(bytes / sizeof(float));
  require(cudaMemsetAsync(scratch.data(), 0, bytes, timed_stream().stream()), "flush");
}

void CapturedGraph::begin() {
  require(cudaStreamBeginCapture(timed_stream().stream(), cudaStreamCaptureModeGlobal), "capture");
}

void CapturedGraph::end() {
  cudaGraph_t graph = nullptr;
  require(cudaStreamEndCapture(timed_stream().stream(), &graph), "capture");
  require(cudaGraphInstantiate(&executable_, graph, 0), "graph");
  require(cudaGraphDestroy(graph), "graph");
}

CapturedGraph::~CapturedGraph() {
  require(cudaGraphExecDestroy(executable_), "graph");
}

void CapturedGraph::replay() const {
  require(cudaGraphLaunch(executable_, timed_stream().stream()), "replay");
}

void report(benchmark::State& state, const Work& work, std::vector<float> times) {
  if (times.empty()) {
    return;
  }
  const double seconds = 1e-3 * static_cast<double>(median(times));
  state.counters["median_us"] = seconds * 1e6;
  state.counters["GB/s"] = work.bytes / seconds * 1e-9;
  state.counters["floor"] = work.bytes / copy_bandwidth() / seconds;
  state.counters["tokens/s"] = work.tokens / seconds;
  if (work.operations > 0) {
    state.counters["TFLOP/s"] = work.operations / seconds * 1e-12;
  }
}

}  // namespace jrt::bench
