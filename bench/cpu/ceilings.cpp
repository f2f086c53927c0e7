// SPDX-License-Identifier: Apache-2.0
#include "cpu/ceilings.hpp"

#include <jrt/detail/cpu/core/simd.hpp>
#include <jrt/thread_pool.hpp>
#include <vector>

#include <benchmark/benchmark.h>

#include "cpu/timing.hpp"

namespace bench {

namespace {

template <class Function>
double shortest(int runs, const Function& function) {
  Shortest shortest;
  for (int run = 0; run < runs; ++run) {
    shortest.time(function);
  }
  return shortest.seconds();
}

/// Twice as many independent chains as two units of latency five need.
constexpr int chains = 20;

[[gnu::noinline]] void multiply_add_chains(std::int64_t rounds) {
  using jrt::detail::cpu::broadcast;
  using jrt::detail::cpu::multiply_add;
  jrt::detail::cpu::Packet<float> sums[chains];
  for (auto& sum : sums) {
    sum = broadcast(1.0F);
  }
  const auto factor = broadcast(0.999F);
  const auto term = broadcast(1e-3F);
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 20
    for (int i = 0; i < chains; ++i) {
      sums[i] = multiply_add(sums[i], factor, term);
    }
  }
  for (auto& sum : sums) {
    benchmark::DoNotOptimize(sum);
  }
}

}  // namespace

double fma_peak(int threads) {
  static std::map<int, double> peaks;
  if (!peaks.contains(threads)) {
    constexpr std::int64_t rounds = 1'000'000;
    jrt::ThreadPool pool(threads);
    const double seconds =
        shortest(200, [&] { pool.run(threads, [](std::int64_t, int) { multiply_add_chains(rounds); }); });
    peaks[threads] = 2.0 * rounds * chains * jrt::detail::cpu::lanes<float> * threads / seconds;
  }
  return peaks[threads];
}

double sgemm_rate() {
  static const double rate = [] {
    constexpr Eigen::Index n = 1024;
    const Eigen::MatrixXf a = Eigen::MatrixXf::Random(n, n);
    const Eigen::MatrixXf b = Eigen::MatrixXf::Random(n, n);
    Eigen::MatrixXf c(n, n);
    const double seconds = shortest(10, [&] {
      c.noalias() = a * b;
      benchmark::DoNotOptimize(c.data());
    });
    return 2.0 * n * n * n / seconds;
  }();
  return rate;
}

double seconds_to_update(std::int64_t bytes) {
  std::vector<float> buffer(static_cast<std::size_t>(bytes) / sizeof(float), 1.0F);
  return shortest(30, [&] {
    for (float& number : buffer) {
      number = number * 0.999F + 1e-3F;
    }
    benchmark::DoNotOptimize(buffer.data());
    benchmark::ClobberMemory();
  });
}

std::map<std::string, double>& seconds_of() {
  static std::map<std::string, double> seconds;
  return seconds;
}

}  // namespace bench
