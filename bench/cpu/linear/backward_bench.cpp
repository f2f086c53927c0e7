// SPDX-License-Identifier: Apache-2.0
// How much longer than a prefill do its gradients take on the CPU?
#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <jrt/backward.hpp>
#include <jrt/cpu.hpp>
#include <jrt/prefill.hpp>
#include <jrt/thread_pool.hpp>
#include <vector>

#include "cpu/ceilings.hpp"
#include "cpu/problem.hpp"
#include "cpu/timing.hpp"

namespace {

constexpr std::int64_t heads = 16;

/// Useful operations of the backward pass, counted as those of the prefill: the state again and S·g; R, R·v and Rᵀφ(k).
template <class Config>
double backward_operations(std::int64_t tokens, std::int64_t prefix) {
  return static_cast<double>(heads) * bench::operations_per_prefix_token<Config>() *
         static_cast<double>(5 * tokens + 3 * prefix);
}

/// Arguments: tokens, prefix, threads. Prefill and backward alternate, so that a disturbance meets both.
template <class Config>
void backward(benchmark::State& state) {
  using Element = typename Config::Element;
  const std::int64_t tokens = state.range(0);
  const std::int64_t prefix = state.range(1);
  const int threads = static_cast<int>(state.range(2));
  bench::Problem<Config> problem(1, tokens, prefix, heads);
  bench::Problem<Config> gradients(1, tokens, prefix, heads);
  std::vector<jrt::ComputeType<Element>> denominators(static_cast<std::size_t>(tokens * heads));
  jrt::ThreadPool pool(threads);
  const jrt::Cpu on{pool};
  jrt::PrefillArgs<Config> forward{.query = problem.query.view(),
                                   .key = problem.key.view(),
                                   .value = problem.value.view(),
                                   .output = problem.output.view()};
  forward.denominators = jrt::view_bthd(denominators.data(), {1, tokens, heads, 1});
  jrt::BackwardArgs<Config> args{.query = problem.query.view(), .key = problem.key.view(), .value = problem.value.view()};
  args.output = problem.output.view();
  args.denominators = forward.denominators;
  args.output_gradient = gradients.output.view();
  args.query_gradient = gradients.query.view();
  args.key_gradient = gradients.key.view();
  args.value_gradient = gradients.value.view();
  if constexpr (Config::Mask::reads_encoder) {
    args.key_encoder = forward.key_encoder = problem.key_encoder.view();
    args.value_encoder = forward.value_encoder = problem.value_encoder.view();
    args.key_encoder_gradient = gradients.key_encoder.view();
    args.value_encoder_gradient = gradients.value_encoder.view();
  }
  std::vector<std::byte> forward_memory(jrt::prefill_workspace_bytes(forward, on));
  std::vector<std::byte> memory(jrt::backward_workspace_bytes(args, on));
  bench::Shortest of_forward;
  bench::Shortest of_backward;
  for (auto _ : state) {
    jrt::Status status;
    of_forward.time([&] { status = jrt::prefill(forward, {forward_memory.data(), forward_memory.size()}, on); });
    if (status) {
      of_backward.time([&] { status = jrt::backward(args, {memory.data(), memory.size()}, on); });
    }
    if (!status) {
      state.SkipWithError(status.c_str());
      return;
    }
  }
  state.counters["backward_ms"] = of_backward.seconds() * 1e3;
  state.counters["backward_over_prefill"] = of_backward.seconds() / of_forward.seconds();
  state.counters["of_fma_peak"] =
      backward_operations<Config>(tokens, prefix) / of_backward.seconds() / bench::fma_peak(threads);
}

void shapes(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"T", "M", "threads"})->UseRealTime()->Unit(benchmark::kMillisecond)->MinTime(2.5);
}

void backward_prefix(benchmark::State& state) {
  backward<jrt::PrefixLinearAttention<float, 16, 64>>(state);
}
void backward_prefix_bfloat16(benchmark::State& state) {
  backward<jrt::PrefixLinearAttention<jrt::BFloat16, 16, 64>>(state);
}
void backward_causal(benchmark::State& state) {
  backward<jrt::BasedLinearAttention<float, 16, 64>>(state);
}

BENCHMARK(backward_prefix)->Apply(shapes)->Args({8192, 4096, 1})->Args({8192, 4096, 2});
BENCHMARK(backward_prefix_bfloat16)->Apply(shapes)->Args({8192, 4096, 1});
BENCHMARK(backward_causal)->Apply(shapes)->Args({8192, 0, 1});

}  // namespace
