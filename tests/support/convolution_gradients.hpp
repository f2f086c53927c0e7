// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <jrt/mixer/gated_convolution.hpp>
#include <jrt/reference/gated_convolution_backward.hpp>
#include <vector>

#include "support/convolution_problem.hpp"
#include "support/tensor.hpp"

/// Gradients of a convolution as plain values, from a backend and from the oracle.
namespace jrt::test {

/// A convolution and the gradients of what it computes.
template <class ConfigT>
struct ConvolutionGradientProblem {
  using Config = ConfigT;
  using E = typename Config::Element;
  using T = detail::ConvolutionCompute<Config>;
  static constexpr std::int64_t carried = Config::kernel_width - 1;

  ConvolutionProblem<Config> forward;
  CarriedInputs<Config> initial{};                ///< empty: none
  std::vector<std::uint8_t> has_initial_state{};  ///< empty: none
  Tensor<E> output_gradient{};
  std::vector<T> final_gradient{};  ///< (sequence, channel, K−1); empty: none

  /// `states`: with an initial state and a gradient of the final one.
  explicit ConvolutionGradientProblem(const ConvolutionShape& shape, unsigned seed = 1, bool states = true,
                                      const SequenceLists& lists = {})
      : forward(shape, seed), output_gradient(random_tensor<E>(forward.input.shape, seed + 4)) {
    forward.sequences = lists;
    if (states) {
      initial = random_carried<Config>(sequences(), channels(), seed + 5);
      final_gradient = random_tensor<T>({1, sequences(), channels(), carried}, seed + 6).values;
    }
  }

  [[nodiscard]] std::int64_t sequences() const { return forward.sequence_count(); }
  [[nodiscard]] std::int64_t channels() const { return forward.channels(); }
  [[nodiscard]] std::size_t state_numbers() const { return static_cast<std::size_t>(sequences() * channels() * carried); }
};

/// Gradients of a problem; those that were not wanted are empty.
template <class E, class Weight, class T>
struct ConvolutionGradients {
  Tensor<E> input;
  Tensor<E> gate;
  std::vector<Weight> weight;
  std::vector<Weight> bias;
  std::vector<T> initial;

  friend bool operator==(const ConvolutionGradients& a, const ConvolutionGradients& b) {
    const auto same = [](const auto& x, const auto& y) {
      return x.size() == y.size() && (x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(x[0])) == 0);
    };
    return a.input == b.input && a.gate == b.gate && same(a.weight, b.weight) && same(a.bias, b.bias) &&
           same(a.initial, b.initial);
  }
};
template <class Config>
using ConvolutionGradientsOf =
    ConvolutionGradients<typename Config::Element, typename Config::Weight, detail::ConvolutionCompute<Config>>;
using ExpectedGradients = ConvolutionGradients<double, double, double>;

template <class Config>
struct WithDoubleWeights : InDouble<Config> {
  using Weight = double;
};

/// The oracle's gradients for the same problem.
template <class Config>
ExpectedGradients expected_gradients(const ConvolutionGradientProblem<Config>& problem) {
  using Double = WithDoubleWeights<Config>;
  using Format = StateFormatOf<Double>;
  const auto doubles = [](const auto& numbers) {
    std::vector<double> result;
    for (const auto number : numbers) {
      result.push_back(convert<double>(number));
    }
    return result;
  };
  const ConvolutionProblem<Config>& forward = problem.forward;
  auto input = converted<double>(forward.input);
  auto gate = converted<double>(forward.gate);
  auto output_gradient = converted<double>(problem.output_gradient);
  const auto weight = doubles(forward.weight);
  const auto bias = doubles(forward.bias);
  auto initial = doubles(problem.initial);
  auto final_gradient = doubles(problem.final_gradient);
  ExpectedGradients result{
      zero_tensor<double>(input.shape), zero_tensor<double>(gate.shape), std::vector<double>(weight.size()),
      std::vector<double>(static_cast<std::size_t>(problem.channels())), std::vector<double>(problem.state_numbers())};
  const auto slots = [&](std::vector<double>& numbers) {
    return StateSlots<Format>{view_pool<Format>(numbers.data(), problem.sequences(), problem.channels())};
  };
  BackwardArgs<Double> args;
  args.input = view_of(input);
  args.output_gradient = view_of(output_gradient);
  args.input_gradient = view_of(result.input);
  if (forward.has_gate()) {
    args.gate = view_of(gate);
    args.gate_gradient = view_of(result.gate);
  }
  args.weight = weight.data();
  args.bias = bias.empty() ? nullptr : bias.data();
  args.sequences = view_of(forward.sequences);
  if (!initial.empty()) {
    args.initial_state = slots(initial);
    args.has_initial_state = problem.has_initial_state.empty() ? nullptr : problem.has_initial_state.data();
  }
  if (!final_gradient.empty()) {
    args.final_state_gradient = slots(final_gradient);
  }
  args.weight_gradient = result.weight.data();
  args.bias_gradient = result.bias.data();
  args.initial_state_gradient = slots(result.initial);
  reference::backward(args);
  return result;
}

/// Which gradients a call is asked for, and how its tensors lie.
struct GradientOptions {
  Layout layout = Layout::bthd;
  bool halves = false;    ///< input and gate are one projection, and their gradients one tensor
  bool in_place = false;  ///< gradients of initial states replace those of final ones
  bool input = true;
  bool gate = true;
  bool weight = true;
  bool bias = true;
  bool initial = true;
};

/// `backward` on `Backend`.
template <class Backend, class Config>
ConvolutionGradientsOf<Config> run_backward(const ConvolutionGradientProblem<Config>& problem,
                                            const GradientOptions& options = {}) {
  using E = typename Config::Element;
  using Weight = typename Config::Weight;
  using T = detail::ConvolutionCompute<Config>;
  const ConvolutionProblem<Config>& forward = problem.forward;
  const std::int64_t slots = problem.sequences();
  const std::int64_t channels = problem.channels();
  const bool has_gate = forward.has_gate();
  const bool halves = options.halves && has_gate;
  PlacedConvolution<Backend, Config> placed(forward, options.layout, halves);
  Placed<Backend, E> output_gradient(problem.output_gradient, options.layout);
  TensorShape shape = forward.input.shape;
  shape.heads = halves ? 2 : 1;
  Placed<Backend, E> input_gradient(shape, options.layout);
  Placed<Backend, E> gate_gradient(forward.input.shape, options.layout);
  typename Backend::template Array<E> initial(problem.initial);
  typename Backend::template Array<std::uint8_t> has_initial(problem.has_initial_state);
  typename Backend::template Array<T> final_gradient(problem.final_gradient);
  typename Backend::template Array<T> initial_gradient(std::vector<T>(problem.state_numbers(), poison<T>()));
  typename Backend::template Array<Weight> weight_gradient(std::vector<Weight>(forward.weight.size(), poison<Weight>()));
  typename Backend::template Array<Weight> bias_gradient(
      std::vector<Weight>(static_cast<std::size_t>(channels), poison<Weight>()));

  using Args = BackwardArgs<Config>;
  auto args = placed.template args<Args>();
  args.sequences = placed.sequences();
  args.output_gradient = output_gradient.view();
  if (!problem.initial.empty()) {
    args.initial_state = {view_pool<typename Args::Format>(initial.data(), slots, channels)};
    args.has_initial_state = problem.has_initial_state.empty() ? nullptr : has_initial.data();
  }
  if (!problem.final_gradient.empty()) {
    args.final_state_gradient = {view_pool<typename Args::GradientFormat>(final_gradient.data(), slots, channels)};
  }
  if (options.input) {
    args.input_gradient = halves ? input_gradient.view().slice_heads(0, 1) : input_gradient.view();
  }
  if (options.gate && has_gate) {
    args.gate_gradient = halves ? input_gradient.view().slice_heads(1, 1) : gate_gradient.view();
  }
  args.weight_gradient = options.weight ? weight_gradient.data() : nullptr;
  args.bias_gradient = options.bias ? bias_gradient.data() : nullptr;
  if (options.initial) {
    args.initial_state_gradient = options.in_place
                                      ? args.final_state_gradient
                                      : StateSlots<typename Args::GradientFormat>{view_pool<typename Args::GradientFormat>(
                                            initial_gradient.data(), slots, channels)};
  }
  JRT_REQUIRE_OK(backward(args, Backend::execution()));

  CHECK(input_gradient.surroundings_intact());
  CHECK(gate_gradient.surroundings_intact());
  const auto half = [&](const Tensor<E>& both, std::int64_t h) {
    Tensor<E> one = zero_tensor<E>(forward.input.shape);
    for (std::size_t row = 0; row < one.values.size() / static_cast<std::size_t>(channels); ++row) {
      std::copy_n(both.values.begin() + static_cast<std::ptrdiff_t>(row) * 2 * channels + h * channels, channels,
                  one.values.begin() + static_cast<std::ptrdiff_t>(row) * channels);
    }
    return one;
  };
  ConvolutionGradientsOf<Config> result;
  if (options.input) {
    result.input = halves ? half(input_gradient.read(), 0) : input_gradient.read();
  }
  if (options.gate && has_gate) {
    result.gate = halves ? half(input_gradient.read(), 1) : gate_gradient.read();
  }
  if (options.weight) {
    result.weight = weight_gradient.read();
  }
  if (options.bias) {
    result.bias = bias_gradient.read();
  }
  if (options.initial) {
    result.initial = options.in_place ? final_gradient.read() : initial_gradient.read();
  }
  return result;
}

/// Errors of all gradients, each in the Frobenius norm. Sums over tokens count together: one alone may vanish.
struct GradientErrors {
  double input;
  double gate;
  double sums;
  double initial;

  [[nodiscard]] double worst() const {
    double result = 0;
    for (const double error : {input, gate, sums, initial}) {
      result = error <= result ? result : error;  // also what is not a number
    }
    return result;
  }
};

template <class Gradients>
GradientErrors gradient_errors(const Gradients& gradients, const ExpectedGradients& expected) {
  std::vector<double> sums;
  for (const auto* part : {&gradients.weight, &gradients.bias}) {
    for (const auto number : *part) {
      sums.push_back(convert<double>(number));
    }
  }
  std::vector<double> expected_sums = expected.weight;
  expected_sums.insert(expected_sums.end(), expected.bias.begin(), expected.bias.end());
  return {relative_error(gradients.input.values, expected.input.values),
          relative_error(gradients.gate.values, expected.gate.values), relative_error(sums, expected_sums),
          relative_error(gradients.initial, expected.initial)};
}

template <class Config>
void check_gradients(const ConvolutionGradientsOf<Config>& gradients, const ExpectedGradients& expected,
                     double tolerance = gradient_tolerance<typename Config::Element>()) {
  const GradientErrors errors = gradient_errors(gradients, expected);
  CHECK(errors.input <= tolerance);
  CHECK(errors.gate <= tolerance);
  CHECK(errors.sums <= tolerance);
  CHECK(errors.initial <= tolerance);
}

}  // namespace jrt::test
