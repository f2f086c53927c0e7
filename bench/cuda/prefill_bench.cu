// SPDX-License-Identifier: Apache-2.0
// Prefill over the shapes of docs/performance.md: normalised, final state written.
#include <jrt/prefill.hpp>
#include <string>

#include "cuda/timing.cuh"

namespace jrt::bench {
namespace {

constexpr std::int64_t heads = 16;

template <class Config>
void prefill_time(benchmark::State& state, bool token_major) {
  using E = typename Config::Element;
  using Format = StateFormatOf<Config>;
  constexpr int d = Config::FeatureMap::input_dim;
  constexpr int dv = Config::value_dim;
  const std::int64_t batch = state.range(0);
  const std::int64_t tokens = state.range(1);
  const std::int64_t prefix = Config::Mask::reads_encoder ? tokens / 2 : 0;
  DeviceArray<E> query(batch * tokens * heads * d, 1), key(batch * tokens * heads * d, 2);
  DeviceArray<E> value(batch * tokens * heads * dv, 3), output(batch * tokens * heads * dv, 4);
  DeviceArray<E> key_encoder(batch * prefix * heads * d, 5), value_encoder(batch * prefix * heads * dv, 6);
  DeviceArray<float> states(batch * heads * Format::head_elements);
  const auto view = [&]<class T>(T* data, std::int64_t count, std::int64_t dim) {
    const TensorShape shape{batch, count, heads, dim};
    return token_major ? view_bthd(data, shape) : view_bhtd(data, shape);
  };
  PrefillArgs<Config> args;
  args.query = view(query.data(), tokens, d);
  args.key = view(key.data(), tokens, d);
  args.value = view(value.data(), tokens, dv);
  if (prefix > 0) {
    args.key_encoder = view(key_encoder.data(), prefix, d);
    args.value_encoder = view(value_encoder.data(), prefix, dv);
  }
  args.output = view(output.data(), tokens, dv);
  args.final_state = {view_pool<Format>(states.data(), batch, heads)};
  const Cuda& on = timed_stream();
  const std::size_t bytes = prefill_workspace_bytes(args, on);
  DeviceArray<float> workspace(static_cast<std::int64_t>(bytes / sizeof(float) + 1));
  const auto run = [&] { require(prefill(args, {workspace.data(), bytes}, on)); };
  for (int i = 0; i < 3; ++i) {
    run();
  }
  for (auto _ : state) {
    flush_cache();
    state.SetIterationTime(1e-3 * static_cast<double>(milliseconds(run)));
  }
  const auto rows = static_cast<double>(batch * heads);
  const auto all = static_cast<double>(tokens);
  const auto encoder = static_cast<double>(prefix);
  const double numbers = (2 * d + 2 * dv) * all + (d + dv) * encoder;
  constexpr double state_numbers = static_cast<double>(Format::rows) * (dv + 1);
  report(state, rows * numbers * sizeof(E), rows * 2 * state_numbers * (2 * all + encoder));
  state.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(batch) * all, benchmark::Counter::kIsIterationInvariantRate);
}

template <class Config>
void add(const std::string& name, std::initializer_list<std::pair<std::int64_t, std::int64_t>> shapes,
         bool token_major = false) {
  auto* const bench = benchmark::RegisterBenchmark(
      ("prefill/" + name).c_str(), [token_major](benchmark::State& state) { prefill_time<Config>(state, token_major); });
  bench->ArgNames({"B", "N"})->UseManualTime()->Unit(benchmark::kMicrosecond)->MinTime(0.05);
  for (const auto& [batch, tokens] : shapes) {
    bench->Args({batch, tokens});
  }
}

const bool registered = [] {
  using Causal = BasedLinearAttention<BFloat16, 16, 64>;
  using Prefix = PrefixLinearAttention<BFloat16, 16, 64>;
  const auto table = {std::pair<std::int64_t, std::int64_t>{16, 2048},
                      {16, 8192},
                      {16, 16384},
                      {16, 32768},
                      {1, 2048},
                      {1, 32768},
                      {1, 131072},
                      {8, 2048}};
  add<Causal>("causal/bfloat16/dv64", table);
  add<Prefix>("prefix/bfloat16/dv64", table);
  add<Prefix>("prefix/bfloat16/dv64/token_major", {{16, 8192}, {1, 32768}}, true);
  add<PrefixLinearAttention<BFloat16, 16, 112>>("prefix/bfloat16/dv112", {{16, 8192}, {1, 32768}});
  add<PrefixLinearAttention<Half, 16, 64>>("prefix/half/dv64", {{16, 8192}, {1, 32768}});
  add<PrefixLinearAttention<float, 16, 64>>("prefix/float/dv64", {{16, 8192}, {1, 32768}});
  return true;
}();

}  // namespace
}  // namespace jrt::bench
