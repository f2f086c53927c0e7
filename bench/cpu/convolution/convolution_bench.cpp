// SPDX-License-Identifier: Apache-2.0
// How close is the convolution on the CPU to copying memory?
#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstring>
#include <jrt/backward.hpp>
#include <jrt/cpu.hpp>
#include <jrt/mixer/gated_convolution.hpp>
#include <vector>

#include "cpu/problem.hpp"
#include "cpu/timing.hpp"

namespace {

constexpr std::int64_t channels = 2048;

/// Bytes per second, read and written, of a copy from one half of `bytes` bytes to the other.
double copy_bandwidth(std::size_t bytes) {
  std::vector<std::byte> memory(bytes, std::byte{1});
  bench::Shortest shortest;
  for (int run = 0; run < 20; ++run) {
    shortest.time([&] {
      std::memcpy(memory.data(), memory.data() + bytes / 2, bytes / 2);
      benchmark::DoNotOptimize(memory.data());
      benchmark::ClobberMemory();
    });
  }
  return static_cast<double>(bytes / 2 * 2) / shortest.seconds();
}

/// Times `run()`, which returns a status, and reports its bandwidth beside that of a copy of as many bytes.
template <class Run>
void time_bytes(benchmark::State& state, std::size_t bytes, const Run& run) {
  bench::Shortest shortest;
  for (auto _ : state) {
    jrt::Status status;
    shortest.time([&] { status = run(); });
    if (!status) {
      state.SkipWithError(status.c_str());
      return;
    }
  }
  const double bandwidth = static_cast<double>(bytes) / shortest.seconds();
  state.counters["GBps"] = bandwidth * 1e-9;
  state.counters["of_memcpy"] = bandwidth / copy_bandwidth(bytes);
}

/// Argument: tokens. Input and gate are halves of one projection, read once; outputs are written once.
template <class Element>
void convolution(benchmark::State& state) {
  using Config = jrt::GatedConvolution<Element, 3>;
  const std::int64_t tokens = state.range(0);
  bench::Tensor<Element> projected({1, tokens, 2, channels}, 1);
  bench::Tensor<Element> weight({1, channels, 1, 3}, 2);
  bench::Tensor<Element> output({1, tokens, 1, channels}, 3);
  jrt::PrefillArgs<Config> args;
  args.input = projected.view().slice_heads(0, 1);
  args.gate = projected.view().slice_heads(1, 1);
  args.output = output.view();
  args.weight = weight.view().data;
  const jrt::Cpu on{};
  const auto bytes = 3 * static_cast<std::size_t>(tokens * channels) * sizeof(Element);
  time_bytes(state, bytes, [&] { return jrt::prefill(args, {}, on); });
}
BENCHMARK(convolution<float>)->ArgName("N")->Arg(256)->Arg(16384)->UseRealTime();
BENCHMARK(convolution<jrt::BFloat16>)->ArgName("N")->Arg(16384)->UseRealTime();

/// All gradients; those of input and gate are halves of one tensor too. Three tensors are read once, two written once.
template <class Element>
void convolution_backward(benchmark::State& state) {
  using Config = jrt::GatedConvolution<Element, 3>;
  const std::int64_t tokens = state.range(0);
  bench::Tensor<Element> projected({1, tokens, 2, channels}, 1);
  bench::Tensor<Element> weight({1, channels, 1, 3}, 2);
  bench::Tensor<Element> output_gradient({1, tokens, 1, channels}, 3);
  bench::Tensor<Element> projected_gradient({1, tokens, 2, channels}, 4);
  bench::Tensor<Element> weight_gradient({1, channels, 1, 3}, 5);
  jrt::BackwardArgs<Config> args;
  args.input = projected.view().slice_heads(0, 1);
  args.gate = projected.view().slice_heads(1, 1);
  args.weight = weight.view().data;
  args.output_gradient = output_gradient.view();
  args.input_gradient = projected_gradient.view().slice_heads(0, 1);
  args.gate_gradient = projected_gradient.view().slice_heads(1, 1);
  args.weight_gradient = weight_gradient.view().data;
  const jrt::Cpu on{};
  std::vector<std::byte> memory(jrt::backward_workspace_bytes(args, on));
  const auto bytes = 5 * static_cast<std::size_t>(tokens * channels) * sizeof(Element);
  time_bytes(state, bytes, [&] { return jrt::backward(args, {memory.data(), memory.size()}, on); });
}
BENCHMARK(convolution_backward<float>)->ArgName("N")->Arg(256)->Arg(16384)->UseRealTime();
BENCHMARK(convolution_backward<jrt::BFloat16>)->ArgName("N")->Arg(16384)->UseRealTime();

}  // namespace
