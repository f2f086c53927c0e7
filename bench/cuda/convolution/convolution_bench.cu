// SPDX-License-Identifier: Apache-2.0
// The gated convolution beside copying as many bytes. Names are
//
//     convolution/prefill/<element type>/B:<sequences>/N:<tokens>
//     convolution/decode/<element type>/B:<sequences>
//     convolution/copy/B:<sequences>
//
// with K = 3 and C = 2048 channels; input and gate are halves of one projection. A decode step is one of many in a replayed
// graph, each on tensors and states of its own, so that they come from memory. The copy moves as many bytes as a decode
// step in the same way, by the simplest kernel: what launches in turn allow.
#include <jrt/mixer/gated_convolution.hpp>
#include <string>

#include "cuda/check.cuh"
#include "cuda/timing.cuh"

namespace jrt::bench {
namespace {

constexpr std::int64_t channels = 2048;

using E = BFloat16;
using Config = GatedConvolution<E, 3>;
using Format = StateFormatOf<Config>;
constexpr std::int64_t carried = Format::head_elements;

/// The formula for one token of one sequence, a thread for each channel.
__global__ void expected_token(const TensorView<const E> input, const TensorView<const E> gate, const E* weight,
                               const E* state, std::int64_t b, std::int64_t token, double* output) {
  const std::int64_t c = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  if (c >= input.dim) {
    return;
  }
  double sum = 0;
  for (std::int64_t k = 0; k <= carried; ++k) {
    const std::int64_t t = token - carried + k;
    double u = 0;
    if (t >= 0) {
      u = convert<double>(input.row(b, t, 0)[c]);
    } else if (state != nullptr) {
      u = convert<double>(state[(b * input.dim + c) * carried + carried + t]);
    }
    sum += convert<double>(weight[c * (carried + 1) + k]) * u;
  }
  output[c] = sum / (1 + exp(-sum)) * convert<double>(gate.row(b, token, 0)[c]);
}

/// Tensors of `copies` calls, of which the first is checked.
class ConvolutionProblem {
 public:
  ConvolutionProblem(std::int64_t batch, std::int64_t tokens, std::int64_t copies)
      : batch_(batch),
        tokens_(tokens),
        projected_(random_array<E>(copies * batch * tokens * 2 * channels, 1)),
        output_(copies * batch * tokens * channels),
        weight_(random_array<E>(channels * (carried + 1), 2)),
        states_(random_array<E>(copies * batch * channels * carried, 3)),
        first_states_(numbers_before()) {
    output_.poison();
  }

  template <class Args>
  [[nodiscard]] Args args(std::int64_t copy) const {
    const auto both = view_bthd(projected_.data() + copy * batch_ * tokens_ * 2 * channels, {batch_, tokens_, 2, channels});
    Args args;
    args.input = both.slice_heads(0, 1);
    args.gate = both.slice_heads(1, 1);
    args.output = view_bthd(output_.data() + copy * batch_ * tokens_ * channels, {batch_, tokens_, 1, channels});
    args.weight = weight_.data();
    return args;
  }
  [[nodiscard]] StateSlots<Format> states(std::int64_t copy) const {
    return {view_pool<Format>(states_.data() + copy * batch_ * channels * carried, batch_, channels)};
  }

  /// Error of the first call's outputs in a sample of tokens: those at the ends and some between.
  [[nodiscard]] double error(bool has_state) const {
    const auto call = args<DecodeArgs<Config>>(0);
    const DeviceArray<double> expected(channels);
    RelativeError error;
    for (std::int64_t i = 0; i < 24; ++i) {
      const std::int64_t b = (batch_ - 1) * (i % 6) / 5;
      const std::int64_t token = (tokens_ - 1) * i / 23;
      expected_token<<<channels / 128, 128>>>(call.input, call.gate, weight_.data(),
                                              has_state ? first_states_.data() : nullptr, b, token, expected.data());
      require(cudaGetLastError(), "reference of the convolution");
      const auto formula = numbers_at(expected.data(), channels);
      const auto written = numbers_at(call.output.row(b, token, 0), channels);
      for (std::size_t c = 0; c < formula.size(); ++c) {
        error.add(written[c], formula[c]);
      }
    }
    return error.value();
  }

 private:
  /// The first call's states as they are before it.
  [[nodiscard]] DeviceArray<E> numbers_before() const {
    DeviceArray<E> numbers(batch_ * channels * carried);
    require(cudaMemcpy(numbers.data(), states_.data(), static_cast<std::size_t>(numbers.size()) * sizeof(E),
                       cudaMemcpyDeviceToDevice),
            "copy of states");
    return numbers;
  }

  std::int64_t batch_;
  std::int64_t tokens_;
  DeviceArray<E> projected_;
  DeviceArray<E> output_;
  DeviceArray<E> weight_;
  DeviceArray<E> states_;
  DeviceArray<E> first_states_;
};

/// Runs `call(0)`, checks its outputs, then times.
template <class Call, class Run>
void check_and_time(benchmark::State& state, const ConvolutionProblem& problem, bool has_state, const Call& call,
                    const Work& work, std::int64_t calls, const Run& run) {
  if (const Status status = call(0); !status.ok()) {
    fail(state, status.c_str());
    return;
  }
  require(cudaStreamSynchronize(timed_stream().stream()), "convolution");
  if (accept(state, "error", problem.error(has_state), error_bound<E>)) {
    time_calls(state, work, run, calls);
  }
}

void convolve(benchmark::State& state, std::int64_t batch, std::int64_t tokens) {
  const ConvolutionProblem problem(batch, tokens, 1);
  const auto call = [&](std::int64_t) { return prefill(problem.args<PrefillArgs<Config>>(0), {}, timed_stream()); };
  const Work work{.bytes = 3.0 * static_cast<double>(batch * tokens * channels) * sizeof(E),
                  .tokens = static_cast<double>(batch * tokens)};
  check_and_time(state, problem, false, call, work, 1, [&] { require(call(0)); });
}

void step(benchmark::State& state, std::int64_t batch) {
  constexpr std::int64_t steps = 100;
  const ConvolutionProblem problem(batch, 1, steps);
  const auto call = [&](std::int64_t copy) {
    auto args = problem.args<DecodeArgs<Config>>(copy);
    args.source = problem.states(copy);
    return decode_step(args, {}, timed_stream());
  };
  const Work work{.bytes = static_cast<double>(batch * channels * (3 + 2 * carried)) * sizeof(E),
                  .tokens = static_cast<double>(batch)};
  const auto all_steps = [&] {
    for (std::int64_t i = 0; i < steps; ++i) {
      require(call(i));
    }
  };
  const CapturedGraph graph(all_steps);
  check_and_time(state, problem, true, call, work, steps, [&] { graph.replay(); });
}

__global__ void copy_vectors(const uint4* from, uint4* to, std::int64_t count) {
  const std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  if (i < count) {
    to[i] = from[i];
  }
}

void copy(benchmark::State& state, std::int64_t batch) {
  constexpr std::int64_t steps = 100;
  const std::int64_t bytes = batch * channels * (3 + 2 * carried) * static_cast<std::int64_t>(sizeof(E));
  const std::int64_t vectors = bytes / 2 / static_cast<std::int64_t>(sizeof(uint4));
  const DeviceArray<uint4> from(steps * vectors);
  const DeviceArray<uint4> to(steps * vectors);
  from.poison();
  const CapturedGraph graph([&] {
    for (std::int64_t i = 0; i < steps; ++i) {
      copy_vectors<<<static_cast<unsigned>((vectors + 127) / 128), 128, 0, timed_stream().stream()>>>(
          from.data() + i * vectors, to.data() + i * vectors, vectors);
    }
  });
  time_calls(
      state, {.bytes = static_cast<double>(bytes), .tokens = static_cast<double>(batch)}, [&] { graph.replay(); }, steps);
}

const bool registered = [] {
  const auto add = [](const std::string& name, const auto& run) {
    benchmark::RegisterBenchmark(name.c_str(), run)->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(21);
  };
  add("convolution/prefill/bfloat16/B:8/N:16384", [](benchmark::State& state) { convolve(state, 8, 16384); });
  add("convolution/prefill/bfloat16/B:2/N:2048", [](benchmark::State& state) { convolve(state, 2, 2048); });
  for (const std::int64_t batch : {1, 32, 256}) {
    add("convolution/decode/bfloat16/B:" + std::to_string(batch), [batch](benchmark::State& state) { step(state, batch); });
    add("convolution/copy/B:" + std::to_string(batch), [batch](benchmark::State& state) { copy(state, batch); });
  }
  return true;
}();

}  // namespace
}  // namespace jrt::bench
