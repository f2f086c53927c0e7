// SPDX-License-Identifier: Apache-2.0
// One decode step: its time in a replayed graph of many steps, each on other slots, so that states come from memory.
#include <algorithm>
#include <jrt/decode.hpp>
#include <string>
#include <vector>

#include "cuda/timing.cuh"

namespace jrt::bench {
namespace {

constexpr std::int64_t heads = 16;

template <class Element, class Scalar>
struct Operator : BasedLinearAttention<Element, 16, 64> {
  using StateScalar = Scalar;
};

template <class Config>
void decode_time(benchmark::State& state) {
  using E = typename Config::Element;
  using Format = StateFormatOf<Config>;
  const std::int64_t batch = state.range(0);
  constexpr double pool_bytes = 1e9;
  const std::int64_t steps = std::clamp<std::int64_t>(
      static_cast<std::int64_t>(pool_bytes / static_cast<double>(Format::slot_bytes(heads) * batch)), 4, 200);
  DeviceArray<E> query(batch * heads * 16, 1), key(batch * heads * 16, 2), value(batch * heads * 64, 3),
      output(batch * heads * 64, 4);
  DeviceArray<typename Config::StateScalar> states(steps * batch * heads * Format::head_elements, 5);
  const auto pool = view_pool<Format>(states.data(), batch, heads);
  const Cuda& on = timed_stream();
  const auto step = [&](std::int64_t index) {
    DecodeArgs<Config> args;
    args.query = view_bthd<const E>(query.data(), {batch, 1, heads, 16});
    args.key = view_bthd<const E>(key.data(), {batch, 1, heads, 16});
    args.value = view_bthd<const E>(value.data(), {batch, 1, heads, 64});
    args.output = view_bthd(output.data(), {batch, 1, heads, 64});
    args.source = {pool};
    args.source.pool.data += index * batch * pool.slot_stride;
    require(decode_step(args, {}, on));
  };
  step(0);
  require(cudaStreamBeginCapture(on.stream(), cudaStreamCaptureModeGlobal), "capture");
  for (std::int64_t i = 0; i < steps; ++i) {
    step(i);
  }
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  require(cudaStreamEndCapture(on.stream(), &graph), "capture");
  require(cudaGraphInstantiate(&executable, graph, 0), "graph");
  const auto run = [&] { require(cudaGraphLaunch(executable, on.stream()), "replay"); };
  run();
  for (auto _ : state) {
    flush_cache();
    state.SetIterationTime(1e-3 * static_cast<double>(milliseconds(run)) / static_cast<double>(steps));
  }
  require(cudaGraphExecDestroy(executable), "graph");
  require(cudaGraphDestroy(graph), "graph");
  report(state, 2.0 * static_cast<double>(Format::slot_bytes(heads) * batch), 0);
}

template <class Config>
void add(const std::string& name) {
  auto* const bench = benchmark::RegisterBenchmark(("decode/" + name).c_str(), decode_time<Config>);
  bench->ArgName("B")->UseManualTime()->Unit(benchmark::kMicrosecond)->MinTime(0.02);
  for (const std::int64_t batch : {1, 8, 32, 128, 256, 1024}) {
    bench->Arg(batch);
  }
}

const bool registered = [] {
  add<Operator<BFloat16, float>>("bfloat16/float_state");
  add<Operator<BFloat16, BFloat16>>("bfloat16/bfloat16_state");
  return true;
}();

}  // namespace
}  // namespace jrt::bench
