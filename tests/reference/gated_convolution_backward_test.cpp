// SPDX-License-Identifier: Apache-2.0
// The oracle's gradients beside differences of the oracle's outputs.
#include <jrt/reference/gated_convolution_backward.hpp>

#include <doctest/doctest.h>

#include <jrt/reference/gated_convolution.hpp>
#include <vector>

#include "support/tensor.hpp"

namespace jrt::test {
namespace {

template <class Base>
struct WithoutActivation : Base {
  using Activation = NoActivation;
};

/// A small problem in double; the loss is Σ output · output_gradient + Σ final state · final_gradient.
template <class Config>
struct SmallProblem {
  static constexpr std::int64_t batch = 3;
  static constexpr std::int64_t channels = 4;
  static constexpr std::int64_t K = Config::kernel_width;
  using Format = StateFormatOf<Config>;

  explicit SmallProblem(std::int64_t count)
      : tokens(count),
        pads{0, static_cast<std::int32_t>(count / 3), 0},
        lengths{static_cast<std::int32_t>(count), static_cast<std::int32_t>(count),
                static_cast<std::int32_t>(count - count / 4)},
        input(random(batch * count * channels, 1)),
        gate(random(batch * count * channels, 2)),
        weight(random(channels * K, 3)),
        bias(random(channels, 4)),
        initial(random(batch * channels * (K - 1), 5)),
        output_gradient(random(batch * count * channels, 6)),
        final_gradient(random(batch * channels * (K - 1), 7)) {}

  static std::vector<double> random(std::int64_t count, unsigned seed) {
    return random_tensor<double>({1, 1, 1, count}, seed).values;
  }
  template <class T>
  TensorView<T> view(T* data) const {
    return view_bthd(data, {batch, tokens, 1, channels});
  }
  StateSlots<Format> slots(std::vector<double>& numbers) const {
    return {view_pool<Format>(numbers.data(), batch, channels)};
  }

  template <class Args>
  void fill(Args& args) {
    args.input = view(input.data());
    args.gate = view(gate.data());
    args.weight = weight.data();
    args.bias = bias.data();
    args.sequences.left_pads = pads;
    args.sequences.seq_lens = lengths;
    args.initial_state = slots(initial);
    args.has_initial_state = has_initial;
  }

  double loss() {
    std::vector<double> output(input.size());
    std::vector<double> final(initial.size());
    PrefillArgs<Config> args;
    fill(args);
    args.output = view(output.data());
    args.final_state = slots(final);
    reference::prefill(args);
    double sum = 0;
    for (std::size_t i = 0; i < output.size(); ++i) {
      sum += output[i] * output_gradient[i];
    }
    for (std::size_t i = 0; i < final.size(); ++i) {
      sum += final[i] * final_gradient[i];
    }
    return sum;
  }

  /// The change of the loss with each of these numbers.
  std::vector<double> differences(std::vector<double>& numbers) {
    constexpr double h = 1e-4;
    std::vector<double> result;
    for (double& number : numbers) {
      const double value = number;
      number = value + h;
      const double above = loss();
      number = value - h;
      result.push_back((above - loss()) / (2 * h));
      number = value;
    }
    return result;
  }

  std::int64_t tokens;
  std::int32_t pads[batch];
  std::int32_t lengths[batch];
  std::uint8_t has_initial[batch] = {1, 1, 0};
  std::vector<double> input;
  std::vector<double> gate;
  std::vector<double> weight;
  std::vector<double> bias;
  std::vector<double> initial;
  std::vector<double> output_gradient;
  std::vector<double> final_gradient;
};

TEST_CASE_TEMPLATE("the oracle's gradients are differences of its outputs", Config, GatedConvolution<double, 2>,
                   GatedConvolution<double, 3>, GatedConvolution<double, 8>,
                   WithoutActivation<GatedConvolution<double, 4>>) {
  for (const std::int64_t tokens : {0, 1, 2, 13}) {
    CAPTURE(tokens);
    SmallProblem<Config> problem(tokens);
    std::vector<double> input(problem.input.size(), poison<double>());
    std::vector<double> gate(problem.gate.size(), poison<double>());
    std::vector<double> weight(problem.weight.size(), poison<double>());
    std::vector<double> bias(problem.bias.size(), poison<double>());
    std::vector<double> initial(problem.initial.size(), poison<double>());
    BackwardArgs<Config> args;
    problem.fill(args);
    args.output_gradient = problem.view(problem.output_gradient.data());
    args.final_state_gradient = problem.slots(problem.final_gradient);
    args.input_gradient = problem.view(input.data());
    args.gate_gradient = problem.view(gate.data());
    args.weight_gradient = weight.data();
    args.bias_gradient = bias.data();
    args.initial_state_gradient = problem.slots(initial);
    reference::backward(args);
    CHECK(relative_error(input, problem.differences(problem.input)) <= 1e-6);
    CHECK(relative_error(gate, problem.differences(problem.gate)) <= 1e-6);
    CHECK(relative_error(weight, problem.differences(problem.weight)) <= 1e-6);
    CHECK(relative_error(bias, problem.differences(problem.bias)) <= 1e-6);
    CHECK(relative_error(initial, problem.differences(problem.initial)) <= 1e-6);
  }
}

}  // namespace
}  // namespace jrt::test
