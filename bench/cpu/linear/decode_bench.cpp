// SPDX-License-Identifier: Apache-2.0
// How close is a decode step on the CPU to reading and writing the state once?
#include <benchmark/benchmark.h>

#include <jrt/cpu.hpp>
#include <jrt/decode.hpp>
#include <vector>

#include "cpu/ceilings.hpp"
#include "cpu/problem.hpp"
#include "cpu/timing.hpp"

namespace {

constexpr std::int64_t heads = 16;

using Config = jrt::PrefixLinearAttention<float, 16, 64>;
using Format = jrt::StateFormatOf<Config>;

/// Arguments: sequences, tokens of the step.
void decode_step(benchmark::State& state) {
  const std::int64_t batch = state.range(0);
  const std::int64_t tokens = state.range(1);
  bench::Problem<Config> problem(batch, tokens, 0, heads);
  jrt::StatePool<Format> states;
  if (!jrt::StatePool<Format>::allocate(batch, heads, states)) {
    state.SkipWithError("no memory for the states");
    return;
  }
  const jrt::Cpu on{};
  const jrt::DecodeArgs<Config> args{.query = problem.query.view(),
                                     .key = problem.key.view(),
                                     .value = problem.value.view(),
                                     .output = problem.output.view(),
                                     .source = {states.view()}};
  std::vector<std::byte> memory(jrt::decode_workspace_bytes(args, on));
  bench::Shortest shortest;
  for (auto _ : state) {
    jrt::Status status;
    shortest.time([&] { status = jrt::decode_step(args, {memory.data(), memory.size()}, on); });
    if (!status) {
      state.SkipWithError(status.c_str());
      return;
    }
  }
  const std::int64_t bytes = batch * Format::slot_bytes(heads);
  state.counters["state_GBps"] = 2.0 * static_cast<double>(bytes) / shortest.seconds() * 1e-9;
  state.counters["over_state_update"] = shortest.seconds() / bench::seconds_to_update(bytes);
}
BENCHMARK(decode_step)->ArgNames({"B", "T"})->Args({1, 1})->Args({32, 1})->Args({1, 4})->UseRealTime();

/// The baseline: the same step in plain loops, first the update, then the query.
void naive_decode_step(benchmark::State& state) {
  const std::int64_t batch = state.range(0);
  bench::Problem<Config> problem(batch, 1, 0, heads);
  jrt::StatePool<Format> states;
  if (!jrt::StatePool<Format>::allocate(batch, heads, states)) {
    state.SkipWithError("no memory for the states");
    return;
  }
  const Config::FeatureMap map{};
  for (auto _ : state) {
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t h = 0; h < heads; ++h) {
        float* const sums = states.view().head(b, h);
        float* const normaliser = sums + Format::normaliser_offset;
        const float* const value = problem.value.view().row(b, 0, h);
        float key_features[Format::rows];
        float query_features[Format::rows];
        map.expand_key(problem.key.view().row(b, 0, h), key_features);
        map.expand_query(problem.query.view().row(b, 0, h), query_features);
        for (int r = 0; r < Format::rows; ++r) {
          for (int c = 0; c < Format::columns; ++c) {
            sums[r * Format::columns + c] += key_features[r] * value[c];
          }
          normaliser[r] += key_features[r];
        }
        float numerator[Format::columns] = {};
        float denominator = 0;
        for (int r = 0; r < Format::rows; ++r) {
          for (int c = 0; c < Format::columns; ++c) {
            numerator[c] += query_features[r] * sums[r * Format::columns + c];
          }
          denominator += query_features[r] * normaliser[r];
        }
        float* const output = problem.output.view().row(b, 0, h);
        for (int c = 0; c < Format::columns; ++c) {
          output[c] = numerator[c] / denominator;
        }
      }
    }
    benchmark::ClobberMemory();
  }
}
BENCHMARK(naive_decode_step)->ArgNames({"B"})->Arg(1)->Arg(32)->UseRealTime();

}  // namespace
