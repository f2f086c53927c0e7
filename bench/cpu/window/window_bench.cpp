// SPDX-License-Identifier: Apache-2.0
// How close is window attention on the CPU, forward and backward, to the matrix products that it is made of, at the rate of
// Eigen's?
#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <jrt/backward.hpp>
#include <jrt/cpu.hpp>
#include <jrt/mixer/window_attention.hpp>
#include <memory>

#include "cpu/ceilings.hpp"
#include "cpu/problem.hpp"
#include "cpu/timing.hpp"

namespace {

using Config = jrt::SlidingWindowAttention<float, 64, 128>;
constexpr std::int64_t heads = 16;

/// Times `run(workspace)` and reports its rate for products whose inner dimensions add up to `depth` for every pair of a
/// query and a key that it sees.
template <class Run>
void time_products(benchmark::State& state, int depth, std::size_t bytes, const Run& run) {
  const auto memory = std::make_unique<std::byte[]>(bytes);
  bench::Shortest shortest;
  for (auto _ : state) {
    jrt::Status status;
    shortest.time([&] { status = run(jrt::Workspace{memory.get(), bytes}); });
    if (!status) {
      state.SkipWithError(status.c_str());
      return;
    }
  }
  const double operations = 2.0 * (Config::left_window + 1) * depth * static_cast<double>(state.range(0) * heads);
  state.counters["GFLOPs"] = operations / shortest.seconds() * 1e-9;
  state.counters["of_sgemm"] = operations / shortest.seconds() / bench::sgemm_rate();
}

/// Argument: tokens. 16 heads, d = 64, L = 128, one thread. Operations are those of the keys in the window alone.
void window(benchmark::State& state) {
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
  time_products(state, Config::head_dim + Config::value_dim, jrt::prefill_workspace_bytes(args, on),
                [&](const jrt::Workspace& workspace) { return jrt::prefill(args, workspace, on); });
}
BENCHMARK(window)->ArgName("N")->Arg(8192)->UseRealTime()->Unit(benchmark::kMillisecond);

/// The same for all three gradients: five products instead of two.
void window_backward(benchmark::State& state) {
  const std::int64_t tokens = state.range(0);
  const jrt::TensorShape shape{1, tokens, heads, Config::head_dim};
  bench::Tensor<float> query(shape, 1);
  bench::Tensor<float> key(shape, 2);
  bench::Tensor<float> value(shape, 3);
  bench::Tensor<float> output(shape, 4);
  bench::Tensor<float> log_sum_exp({1, tokens, heads, 1}, 5);
  bench::Tensor<float> output_gradient(shape, 6);
  bench::Tensor<float> query_gradient(shape, 7);
  bench::Tensor<float> key_gradient(shape, 8);
  bench::Tensor<float> value_gradient(shape, 9);
  jrt::PrefillArgs<Config> forward;
  forward.query = query.view();
  forward.key = key.view();
  forward.value = value.view();
  forward.output = output.view();
  forward.log_sum_exp = log_sum_exp.view();
  const jrt::Cpu on{};
  if (const jrt::Status status = jrt::prefill(forward, on); !status) {
    state.SkipWithError(status.c_str());
    return;
  }
  jrt::BackwardArgs<Config> args;
  args.query = forward.query;
  args.key = forward.key;
  args.value = forward.value;
  args.output = forward.output;
  args.log_sum_exp = forward.log_sum_exp;
  args.output_gradient = output_gradient.view();
  args.query_gradient = query_gradient.view();
  args.key_gradient = key_gradient.view();
  args.value_gradient = value_gradient.view();
  time_products(state, 3 * Config::head_dim + 2 * Config::value_dim, jrt::backward_workspace_bytes(args, on),
                [&](const jrt::Workspace& workspace) { return jrt::backward(args, workspace, on); });
}
BENCHMARK(window_backward)->ArgName("N")->Arg(8192)->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
