// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "cuda/timing.cuh"

namespace {

std::string version_name(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

/// The table that the kernels for Hopper are tuned by.
std::string tuning(const jrt::detail::cuda::HopperTuning& t) {
  return "stages " + std::to_string(t.stages) + ", state registers " + std::to_string(t.state_registers) +
         ", output registers " + std::to_string(t.output_registers) + ", output blocks " + std::to_string(t.output_blocks) +
         ", sum blocks " + std::to_string(t.sum_blocks) + ", min segments " + std::to_string(t.min_segments) +
         ", tokens per worker " + std::to_string(t.tokens_per_worker);
}

}  // namespace

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("skipped: no CUDA device");
    return 0;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    return 1;
  }
  cudaDeviceProp properties{};
  jrt::bench::require(cudaGetDeviceProperties(&properties, 0), "properties");
  int runtime = 0;
  int driver = 0;
  jrt::bench::require(cudaRuntimeGetVersion(&runtime), "version");
  jrt::bench::require(cudaDriverGetVersion(&driver), "version");
  benchmark::AddCustomContext("GPU", properties.name);
  benchmark::AddCustomContext("multiprocessors", std::to_string(properties.multiProcessorCount));
  benchmark::AddCustomContext("CUDA", version_name(runtime) + ", driver for " + version_name(driver));
  benchmark::AddCustomContext("kernels",
                              jrt::bench::timed_kernels() == jrt::CudaKernels::portable ? "portable" : "automatic");
  using namespace jrt::detail::cuda;
  benchmark::AddCustomContext("hopper_tuning bfloat16", tuning(hopper_tuning<jrt::BFloat16>));
  benchmark::AddCustomContext("hopper_tuning half", tuning(hopper_tuning<jrt::Half>));
  benchmark::AddCustomContext("copy_GB/s", std::to_string(jrt::bench::copy_bandwidth() * 1e-9));
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  if (jrt::bench::any_failed()) {
    std::fputs("Some benchmarks failed; their rows say why.\n", stderr);
    return 1;
  }
  return 0;
}
