// SPDX-License-Identifier: Apache-2.0
// The gated convolution beside copying as many bytes. Names are
//
//     convolution/prefill/<element type>/B:<sequences>/N:<tokens>
//     convolution/backward/<element type>/B:<sequences>/N:<tokens>
//     convolution/decode/<element type>/B:<sequences>
//     convolution/copy/B:<sequences>
//
// with K = 3 and C = 2048 channels; input and gate are halves of one projection. A backward pass is replayed as a graph. A
// decode step is one of many in a replayed graph, each on tensors and states of its own, so that they come from memory. The
// copy moves as many bytes as a decode step in the same way, by the simplest kernel: what launches in turn allow.
#include <jrt/backward.hpp>
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

/// Tensors of one backward pass; gradients of input and gate are halves of one tensor.
class GradientProblem {
 public:
  GradientProblem(std::int64_t batch, std::int64_t tokens)
      : batch_(batch),
        tokens_(tokens),
        projected_(random_array<E>(batch * tokens * 2 * channels, 1)),
        weight_(random_array<E>(channels * (carried + 1), 2)),
        output_gradient_(random_array<E>(batch * tokens * channels, 3)),
        projected_gradient_(batch * tokens * 2 * channels),
        weight_gradient_(channels * (carried + 1)),
        workspace_(static_cast<std::int64_t>(backward_workspace_bytes(args(), timed_stream()))) {
    projected_gradient_.poison();
    weight_gradient_.poison();
  }

  [[nodiscard]] BackwardArgs<Config> args() const {
    const auto both = view_bthd(projected_.data(), {batch_, tokens_, 2, channels});
    const auto both_gradients = view_bthd(projected_gradient_.data(), {batch_, tokens_, 2, channels});
    BackwardArgs<Config> args;
    args.input = both.slice_heads(0, 1);
    args.gate = both.slice_heads(1, 1);
    args.weight = weight_.data();
    args.output_gradient = view_bthd(output_gradient_.data(), {batch_, tokens_, 1, channels});
    args.input_gradient = both_gradients.slice_heads(0, 1);
    args.gate_gradient = both_gradients.slice_heads(1, 1);
    args.weight_gradient = weight_gradient_.data();
    return args;
  }
  [[nodiscard]] Workspace workspace() const { return {workspace_.data(), static_cast<std::size_t>(workspace_.size())}; }

  /// Error of gradients of inputs and gates in a sample of tokens, and of the gradient of the weights.
  [[nodiscard]] double tokens_error() const;
  [[nodiscard]] double weights_error() const;

 private:
  std::int64_t batch_;
  std::int64_t tokens_;
  DeviceArray<E> projected_;
  DeviceArray<E> weight_;
  DeviceArray<E> output_gradient_;
  DeviceArray<E> projected_gradient_;
  DeviceArray<E> weight_gradient_;
  DeviceArray<std::byte> workspace_;
};

/// The gradient of the sum of token t, and that of its gate; 0 where there is no token.
__device__ double sum_gradient(const BackwardArgs<Config>& args, std::int64_t b, std::int64_t t, std::int64_t c,
                               double* gate_gradient) {
  if (t < 0 || t >= args.input.tokens) {
    return 0;
  }
  double sum = 0;
  for (std::int64_t k = 0; k <= carried && t - carried + k < args.input.tokens; ++k) {
    const std::int64_t s = t - carried + k;
    sum += s < 0 ? 0 : convert<double>(args.weight[c * (carried + 1) + k]) * convert<double>(args.input.row(b, s, 0)[c]);
  }
  const double logistic = 1 / (1 + exp(-sum));
  const double outer = convert<double>(args.output_gradient.row(b, t, 0)[c]);
  *gate_gradient = outer * sum * logistic;
  return outer * convert<double>(args.gate.row(b, t, 0)[c]) * (logistic + sum * logistic * (1 - logistic));
}

/// The formula for one token, a thread for each channel: gradients of the inputs, then those of the gates.
__global__ void expected_token_gradients(const BackwardArgs<Config> args, std::int64_t b, std::int64_t token,
                                         double* gradients) {
  const std::int64_t c = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  double input_gradient = 0;
  double gate_gradient = 0;
  for (std::int64_t k = carried; k >= 0; --k) {
    double ignored = 0;
    input_gradient += convert<double>(args.weight[c * (carried + 1) + k]) *
                      sum_gradient(args, b, token + carried - k, c, k == carried ? &gate_gradient : &ignored);
  }
  gradients[c] = input_gradient;
  gradients[args.input.dim + c] = gate_gradient;
}

/// The formula for the weights, a thread for each channel of a sequence; the sequences' are added afterwards.
__global__ void expected_weight_gradients(const BackwardArgs<Config> args, double* gradients) {
  const std::int64_t c = (blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x) % args.input.dim;
  const std::int64_t b = (blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x) / args.input.dim;
  double sums[carried + 1] = {};
  for (std::int64_t t = 0; t < args.input.tokens; ++t) {
    double ignored = 0;
    const double gradient = sum_gradient(args, b, t, c, &ignored);
    for (std::int64_t k = 0; k <= carried; ++k) {
      const std::int64_t s = t - carried + k;
      sums[k] += s < 0 ? 0 : gradient * convert<double>(args.input.row(b, s, 0)[c]);
    }
  }
  for (std::int64_t k = 0; k <= carried; ++k) {
    gradients[(b * args.input.dim + c) * (carried + 1) + k] = sums[k];
  }
}

double GradientProblem::tokens_error() const {
  const BackwardArgs<Config> call = args();
  const DeviceArray<double> expected(2 * channels);
  RelativeError error;
  for (std::int64_t i = 0; i < 24; ++i) {
    const std::int64_t b = (batch_ - 1) * (i % 6) / 5;
    const std::int64_t token = (tokens_ - 1) * i / 23;
    expected_token_gradients<<<channels / 128, 128>>>(call, b, token, expected.data());
    require(cudaGetLastError(), "reference of the convolution's gradients");
    const auto formula = numbers_at(expected.data(), 2 * channels);
    auto written = numbers_at(call.input_gradient.row(b, token, 0), channels);
    const auto gates = numbers_at(call.gate_gradient.row(b, token, 0), channels);
    written.insert(written.end(), gates.begin(), gates.end());
    for (std::size_t c = 0; c < formula.size(); ++c) {
      error.add(written[c], formula[c]);
    }
  }
  return error.value();
}

double GradientProblem::weights_error() const {
  const std::int64_t numbers = channels * (carried + 1);
  const DeviceArray<double> expected(batch_ * numbers);
  expected_weight_gradients<<<static_cast<unsigned>(batch_ * channels / 128), 128>>>(args(), expected.data());
  require(cudaGetLastError(), "reference of the weights' gradients");
  const auto parts = numbers_at(expected.data(), batch_ * numbers);
  const auto written = numbers_at(weight_gradient_.data(), numbers);
  RelativeError error;
  for (std::size_t i = 0; i < written.size(); ++i) {
    double sum = 0;
    for (std::size_t part = i; part < parts.size(); part += written.size()) {
      sum += parts[part];
    }
    error.add(written[i], sum);
  }
  return error.value();
}

/// Three tensors are read once, two written once.
void convolve_backward(benchmark::State& state, std::int64_t batch, std::int64_t tokens) {
  const GradientProblem problem(batch, tokens);
  const auto call = [&] { return backward(problem.args(), problem.workspace(), timed_stream()); };
  if (const Status status = call(); !status.ok()) {
    fail(state, status.c_str());
    return;
  }
  require(cudaStreamSynchronize(timed_stream().stream()), "gradients of the convolution");
  constexpr double gradient_bound = 1e-2;
  if (accept(state, "error", problem.tokens_error(), gradient_bound) &&
      accept(state, "weight_error", problem.weights_error(), gradient_bound)) {
    const CapturedGraph graph([&] { require(call()); });
    time_calls(state,
               {.bytes = 5.0 * static_cast<double>(batch * tokens * channels) * sizeof(E),
                .tokens = static_cast<double>(batch * tokens)},
               [&] { graph.replay(); });
  }
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
  add("convolution/backward/bfloat16/B:8/N:16384", [](benchmark::State& state) { convolve_backward(state, 8, 16384); });
  add("convolution/backward/bfloat16/B:1/N:32768", [](benchmark::State& state) { convolve_backward(state, 1, 32768); });
  add("convolution/backward/bfloat16/B:2/N:2048", [](benchmark::State& state) { convolve_backward(state, 2, 2048); });
  for (const std::int64_t batch : {1, 32, 256}) {
    add("convolution/decode/bfloat16/B:" + std::to_string(batch), [batch](benchmark::State& state) { step(state, batch); });
    add("convolution/copy/B:" + std::to_string(batch), [batch](benchmark::State& state) { copy(state, batch); });
  }
  return true;
}();

}  // namespace
}  // namespace jrt::bench
