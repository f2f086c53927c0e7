// SPDX-License-Identifier: Apache-2.0
// How close is window attention on the CPU to the matrix products that it is made of, at the rate of Eigen's?
#include <benchmark/benchmark.h>

#include <jrt/cpu.hpp>
#include <jrt/mixer/window_attention.hpp>
#include <memory>

#include "cpu/ceilings.hpp"
#include "cpu/problem.hpp"
#include "cpu/timing.hpp"

namespace {

/// Argument: tokens. 16 heads, d = 64, L = 128, one thread. Operations are those of the keys in the window alone.
void window(benchmark::State& state) {
  using Config = jrt::SlidingWindowAttention<float, 64, 128>;
  constexpr std::int64_t heads = 16;
  const std::int64_t tokens = state.range(0);
  const jrt::TensorShape shape{1, tokens, heads, Config::head_dim};
  bench::Tensor<float> query(shape, 1);
  bench::Tensor<float> key(shape, 2);
  bench::Tensor<float> value(shape, 3);
  bench::Tensor<float> output(shape, 4);
  jrt::PrefillArgs<Config> args;
  args.query = query.view();
  args.key = key.view();
  args.value = value.view();
  args.output = output.view();
  const jrt::Cpu on{};
  const std::size_t bytes = jrt::prefill_workspace_bytes(args, on);
  const auto memory = std::make_unique<std::byte[]>(bytes);
  bench::Shortest shortest;
  for (auto _ : state) {
    jrt::Status status;
    shortest.time([&] { status = jrt::prefill(args, {memory.get(), bytes}, on); });
    if (!status) {
      state.SkipWithError(status.c_str());
      return;
    }
  }
  const double operations =
      2.0 * (Config::left_window + 1) * (Config::head_dim + Config::value_dim) * static_cast<double>(tokens * heads);
  state.counters["GFLOPs"] = operations / shortest.seconds() * 1e-9;
  state.counters["of_sgemm"] = operations / shortest.seconds() / bench::sgemm_rate();
}
BENCHMARK(window)->ArgName("N")->Arg(8192)->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
