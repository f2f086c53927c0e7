// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "cuda/timing.cuh"

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
  benchmark::AddCustomContext("GPU", properties.name);
  benchmark::AddCustomContext("copy_GB/s", std::to_string(jrt::bench::copy_bandwidth() * 1e-9));
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
