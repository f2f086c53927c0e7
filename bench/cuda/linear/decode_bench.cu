// SPDX-License-Identifier: Apache-2.0
// One decode step: its time in a replayed graph of many steps, each on other slots, so that states come from memory. Names
// are
//
//     decode/<element type>/<type of the state>_state/B:<sequences>
//     decode/<element type>/<type of the state>_state/staged/B:<sequences>/T:<tokens of the step>
//
// at d = 16, dv = 64, 16 heads. The bytes that must move are the states', read and, unless staged, written.
#include <algorithm>
#include <jrt/decode.hpp>
#include <string>

#include "cuda/linear/decode_check.cuh"
#include "cuda/timing.cuh"

namespace jrt::bench {
namespace {

constexpr std::int64_t heads = 16;

template <class ElementT, class Scalar>
struct Operator : BasedLinearAttention<ElementT, 16, 64> {
  using StateScalar = Scalar;
};

/// Makes random sums those of 64 tokens, which the constant row of z counts: no denominator comes near zero, and a wrong
/// one still shows.
template <class Format>
__global__ void count_tokens(StatePoolView<Format> pool, int constant_row) {
  const std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  if (i < pool.slots * pool.heads) {
    auto* const normaliser = pool.head(i / pool.heads, i % pool.heads) + Format::normaliser_offset;
    normaliser[constant_row] = convert<typename Format::Scalar>(64.0F);
  }
}

/// Tensors of one step, and states for many.
template <class Config>
class DecodeProblem {
 public:
  using E = typename Config::Element;
  using Format = StateFormatOf<Config>;
  static constexpr int d = Config::FeatureMap::input_dim;
  static constexpr int dv = Config::value_dim;

  DecodeProblem(std::int64_t batch, std::int64_t tokens)
      : batch_(batch),
        tokens_(tokens),
        steps_(std::clamp<std::int64_t>(pool_bytes / (Format::slot_bytes(heads) * batch), 4, 200)),
        query_(random_array<E>(batch * tokens * heads * d, 1)),
        key_(random_array<E>(batch * tokens * heads * d, 2)),
        value_(random_array<E>(batch * tokens * heads * dv, 3)),
        output_(batch * tokens * heads * dv),
        staging_(batch * tokens * heads * (d + dv)),
        states_(random_array<typename Config::StateScalar>(steps_ * batch * heads * Format::head_elements, 5)),
        workspace_(static_cast<std::int64_t>(std::max(decode_workspace_bytes(decode_args(0), timed_stream()),
                                                      staged_workspace_bytes(staged_args(0), timed_stream())))) {
    int constant_row = 0;
    while (Config::FeatureMap::RowPacking::template row<d>(constant_row).first >= 0) {
      ++constant_row;
    }
    const auto all = view_pool<Format>(states_.data(), steps_ * batch, heads);
    count_tokens<<<static_cast<unsigned>(detail::ceil_div<std::int64_t>(all.slots * heads, 256)), 256>>>(all, constant_row);
    require(cudaGetLastError(), "states");
    require(cudaDeviceSynchronize(), "states");
  }

  /// How many steps have states of their own.
  [[nodiscard]] std::int64_t steps() const { return steps_; }
  [[nodiscard]] double state_bytes() const { return static_cast<double>(Format::slot_bytes(heads) * batch_); }
  [[nodiscard]] double tokens() const { return static_cast<double>(batch_ * tokens_); }
  [[nodiscard]] StatePoolView<Format> pool(std::int64_t step) const {
    return view_pool<Format>(states_.data() + step * batch_ * heads * Format::head_elements, batch_, heads);
  }
  [[nodiscard]] StepInputs<Config> inputs(const StatePoolView<Format>& before) const {
    return {view(query_, d), view(key_, d), view(value_, dv), before};
  }
  [[nodiscard]] TensorView<E> output() const { return view(output_, dv); }

  [[nodiscard]] Status decode(std::int64_t step) const {
    return decode_step(decode_args(step), workspace(), timed_stream());
  }
  [[nodiscard]] Status stage(std::int64_t step) const {
    return staged_step(staged_args(step), workspace(), timed_stream());
  }

  void poison() const {
    output_.poison();
    staging_.poison();
  }
  /// Makes the states of step 1 those of step 0.
  void copy_first_states() const {
    require(cudaMemcpy(pool(1).data, pool(0).data, static_cast<std::size_t>(state_bytes()), cudaMemcpyDeviceToDevice),
            "copy of states");
    require(cudaDeviceSynchronize(), "copy of states");
  }

 private:
  static constexpr std::int64_t pool_bytes = 1'000'000'000;

  TensorView<E> view(const DeviceArray<E>& array, std::int64_t dim) const {
    return view_bthd(array.data(), {batch_, tokens_, heads, dim});
  }
  template <class Args>
  [[nodiscard]] Args with_tokens() const {
    Args args;
    args.query = view(query_, d);
    args.key = view(key_, d);
    args.value = view(value_, dv);
    args.output = output();
    return args;
  }
  [[nodiscard]] DecodeArgs<Config> decode_args(std::int64_t step) const {
    auto args = with_tokens<DecodeArgs<Config>>();
    args.source = {pool(step)};
    return args;
  }
  [[nodiscard]] StagedStepArgs<Config> staged_args(std::int64_t step) const {
    auto args = with_tokens<StagedStepArgs<Config>>();
    args.state = {pool(step)};
    args.staging = {staging_.data(), batch_, tokens_, heads};
    return args;
  }
  [[nodiscard]] Workspace workspace() const { return {workspace_.data(), static_cast<std::size_t>(workspace_.size())}; }

  std::int64_t batch_;
  std::int64_t tokens_;
  std::int64_t steps_;
  DeviceArray<E> query_;
  DeviceArray<E> key_;
  DeviceArray<E> value_;
  DeviceArray<E> output_;
  DeviceArray<E> staging_;
  DeviceArray<typename Config::StateScalar> states_;
  DeviceArray<std::byte> workspace_;
};

/// Runs `step(0)`, checks what it wrote with `check()`, then times steps on all states.
template <class Step, class Check>
void check_and_time(benchmark::State& state, const Work& work, std::int64_t steps, const Step& step, const Check& check) {
  if (const Status status = step(0); !status.ok()) {
    fail(state, status.c_str());
    return;
  }
  require(cudaStreamSynchronize(timed_stream().stream()), "step");
  if (!check()) {
    return;
  }
  const CapturedGraph graph([&] {
    for (std::int64_t i = 0; i < steps; ++i) {
      require(step(i));
    }
  });
  time_calls(
      state, work, [&] { graph.replay(); }, steps);
}

template <class Config>
void decode(benchmark::State& state, std::int64_t batch) {
  const DecodeProblem<Config> problem(batch, 1);
  problem.copy_first_states();
  problem.poison();
  const auto check = [&] {
    const StepErrors errors = step_errors(problem.inputs(problem.pool(1)), problem.output(), problem.pool(0));
    return accept(state, "error", errors.output, error_bound<typename Config::Element>) &&
           accept(state, "state_error", errors.state, error_bound<typename Config::StateScalar>);
  };
  const Work work{.bytes = 2 * problem.state_bytes(), .tokens = problem.tokens()};
  check_and_time(
      state, work, problem.steps(), [&](std::int64_t i) { return problem.decode(i); }, check);
}

template <class Config>
void staged(benchmark::State& state, std::int64_t batch, std::int64_t tokens) {
  const DecodeProblem<Config> problem(batch, tokens);
  problem.poison();
  const auto check = [&] {
    const StepErrors errors = step_errors(problem.inputs(problem.pool(0)), problem.output(), {});
    return accept(state, "error", errors.output, error_bound<typename Config::Element>);
  };
  const Work work{.bytes = problem.state_bytes(), .tokens = problem.tokens()};
  check_and_time(
      state, work, problem.steps(), [&](std::int64_t i) { return problem.stage(i); }, check);
}

template <class Config>
void add(const std::string& name) {
  const auto add_one = [](const std::string& full_name, const auto& run) {
    benchmark::RegisterBenchmark(full_name.c_str(), run)->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(21);
  };
  for (const std::int64_t batch : {1, 8, 32, 128, 256, 1024, 4096}) {
    add_one("decode/" + name + "/B:" + std::to_string(batch),
            [batch](benchmark::State& state) { decode<Config>(state, batch); });
  }
  add_one("decode/" + name + "/staged/B:32/T:4", [](benchmark::State& state) { staged<Config>(state, 32, 4); });
}

const bool registered = [] {
  add<Operator<BFloat16, float>>("bfloat16/float_state");
  add<Operator<BFloat16, BFloat16>>("bfloat16/bfloat16_state");
  return true;
}();

}  // namespace
}  // namespace jrt::bench
