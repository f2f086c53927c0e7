// SPDX-License-Identifier: Apache-2.0
#include <benchmark/benchmark.h>

#include <string>

#include "cpu/ceilings.hpp"

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    return 1;
  }
  benchmark::AddCustomContext("fma_peak_1_thread_GFLOPs", std::to_string(bench::fma_peak(1) * 1e-9));
  benchmark::AddCustomContext("fma_peak_2_threads_GFLOPs", std::to_string(bench::fma_peak(2) * 1e-9));
  benchmark::AddCustomContext("eigen_sgemm_1_thread_GFLOPs", std::to_string(bench::sgemm_rate() * 1e-9));
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
