// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <jrt/backward.hpp>
#include <jrt/reference/linear_attention_backward.hpp>
#include <vector>

#include "support/linear_problem.hpp"

/// A prefill and its backward pass on a backend, and the oracle's gradients.
namespace jrt::test {

/// Numbers of the gradient of some states.
template <class Config>
using StateGradientNumbers = std::vector<jrt::detail::ConfigCompute<Config>>;

/// Gradients of all inputs; those of an encoder region that a mask does not read are empty.
template <class Config>
struct Gradients {
  using E = typename Config::Element;
  Tensor<E> query;
  Tensor<E> key;
  Tensor<E> value;
  Tensor<E> key_encoder;
  Tensor<E> value_encoder;
  StateGradientNumbers<Config> initial_state;

  friend bool operator==(const Gradients&, const Gradients&) = default;
};

/// Which gradients a call asks for.
struct Wanted {
  bool query = true;
  bool key = true;
  bool value = true;
  bool key_encoder = true;
  bool value_encoder = true;
  bool initial_state = true;
};

/// The loss: gradients for what leaves the prefill, and where it begins.
template <class Config>
struct Loss {
  Tensor<typename Config::Element> output_gradient;
  StateGradientNumbers<Config> final_state_gradient{};
  StateNumbers<Config> initial_state{};

  explicit Loss(const Problem<Config>& problem, unsigned seed = 77)
      : output_gradient(random_tensor<typename Config::Element>(problem.output_shape(), seed)) {}
};

/// Some gradient of a final state.
template <class Config>
StateGradientNumbers<Config> random_state_gradient(std::int64_t slots, std::int64_t heads, unsigned seed) {
  const auto numbers = random_tensor<jrt::detail::ConfigCompute<Config>>(
      {1, 1, 1, static_cast<std::int64_t>(state_numbers<Config>(slots, heads))}, seed, 0.3);
  return numbers.values;
}

/// `Forward` runs the prefill.
template <class Backend, class Forward = Backend, class Config>
Gradients<Config> run_backward(const Problem<Config>& problem, const Loss<Config>& loss, const RunOptions& options = {},
                               const Wanted& wanted = {}) {
  using E = typename Config::Element;
  using Compute = jrt::detail::ConfigCompute<Config>;
  using Format = StateFormatOf<Config>;
  using GradientFormat = StateGradientFormatOf<Config>;
  constexpr bool normalised = Config::Normaliser::uses_denominator;
  const std::int64_t heads = problem.key.shape.heads;
  const std::int64_t slots = problem.sequence_count();
  RunOptions forward = options;
  forward.denominators = normalised;
  const auto results = run_prefill<Forward>(problem, loss.initial_state, forward);

  const Layout layout = options.layout;
  Placed<Backend, E> query(problem.query, layout);
  Placed<Backend, E> key(problem.key, layout);
  Placed<Backend, E> value(problem.value, layout);
  Placed<Backend, E> key_encoder(problem.key_encoder, layout);
  Placed<Backend, E> value_encoder(problem.value_encoder, layout);
  Placed<Backend, E> output(results.output, layout);
  Placed<Backend, Compute> denominators(normalised ? results.denominators : Denominators<Config>{{0, 0, 1, 1}, {}}, layout);
  Placed<Backend, E> output_gradient(loss.output_gradient, layout);
  Placed<Backend, E> query_gradient(problem.query.shape, layout);
  Placed<Backend, E> key_gradient(problem.key.shape, layout);
  Placed<Backend, E> value_gradient(problem.value.shape, layout);
  Placed<Backend, E> key_encoder_gradient(problem.key_encoder.shape, layout);
  Placed<Backend, E> value_encoder_gradient(problem.value_encoder.shape, layout);
  PlacedSequences<Backend> sequences(problem.sequences);
  PlacedMap<Backend, typename Config::FeatureMap> map(problem.map);
  typename Backend::template Array<typename Config::StateScalar> initial(loss.initial_state);
  typename Backend::template Array<std::uint8_t> has_initial(options.has_initial_state);
  typename Backend::template Array<Compute> final_gradient(loss.final_state_gradient);
  typename Backend::template Array<Compute> initial_gradient(
      StateGradientNumbers<Config>(state_numbers<Config>(slots, heads)));

  BackwardArgs<Config> args;
  args.query = query.view();
  args.key = key.view();
  args.value = value.view();
  args.output = output.view();
  if (normalised) {
    args.denominators = denominators.view();
  }
  args.output_gradient = output_gradient.view();
  args.sequences = sequences.view();
  args.feature_map = map.view();
  if (!loss.initial_state.empty()) {
    args.initial_state = {view_pool<Format>(initial.data(), slots, heads)};
  }
  if (!options.has_initial_state.empty()) {
    args.has_initial_state = has_initial.data();
  }
  if (!loss.final_state_gradient.empty()) {
    args.final_state_gradient = {view_pool<GradientFormat>(final_gradient.data(), slots, heads)};
  }
  if (wanted.query) {
    args.query_gradient = query_gradient.view();
  }
  if (wanted.key) {
    args.key_gradient = key_gradient.view();
  }
  if (wanted.value) {
    args.value_gradient = value_gradient.view();
  }
  if constexpr (Config::Mask::reads_encoder) {
    args.key_encoder = key_encoder.view();
    args.value_encoder = value_encoder.view();
    if (wanted.key_encoder && problem.key_encoder.shape.tokens > 0) {
      args.key_encoder_gradient = key_encoder_gradient.view();
    }
    if (wanted.value_encoder && problem.key_encoder.shape.tokens > 0) {
      args.value_encoder_gradient = value_encoder_gradient.view();
    }
  }
  if (wanted.initial_state) {
    args.initial_state_gradient = {view_pool<GradientFormat>(initial_gradient.data(), slots, heads)};
  }
  JRT_REQUIRE_OK(backward(args, Backend::execution()));
  for (const auto* const gradient :
       {&query_gradient, &key_gradient, &value_gradient, &key_encoder_gradient, &value_encoder_gradient}) {
    CHECK(gradient->surroundings_intact());
  }
  const auto read = [](bool is_wanted, const Placed<Backend, E>& gradient) {
    return is_wanted ? gradient.read() : Tensor<E>{};
  };
  constexpr bool encoder = Config::Mask::reads_encoder;
  return {read(wanted.query, query_gradient),
          read(wanted.key, key_gradient),
          read(wanted.value, value_gradient),
          read(encoder && wanted.key_encoder, key_encoder_gradient),
          read(encoder && wanted.value_encoder, value_encoder_gradient),
          wanted.initial_state ? initial_gradient.read() : StateGradientNumbers<Config>{}};
}

/// The oracle's gradients for the same problem, in double.
template <class Config>
Gradients<InDouble<Config>> reference_gradients(const Problem<Config>& problem, const Loss<Config>& loss,
                                                const RunOptions& options = {}) {
  using Double = InDouble<Config>;
  using Format = StateFormatOf<Double>;
  Problem<Double> exact = in_double(problem);
  auto output_gradient = converted<double>(loss.output_gradient);
  const auto in_double_numbers = [](const auto& numbers) {
    std::vector<double> result;
    for (const auto number : numbers) {
      result.push_back(convert<double>(number));
    }
    return result;
  };
  std::vector<double> initial = in_double_numbers(loss.initial_state);
  std::vector<double> final_gradient = in_double_numbers(loss.final_state_gradient);
  const std::int64_t heads = problem.key.shape.heads;
  const std::int64_t slots = problem.sequence_count();
  Gradients<Double> gradients{zero_tensor<double>(exact.query.shape),
                              zero_tensor<double>(exact.key.shape),
                              zero_tensor<double>(exact.value.shape),
                              {},
                              {},
                              std::vector<double>(state_numbers<Double>(slots, heads))};
  BackwardArgs<Double> args;
  args.query = view_of(exact.query);
  args.key = view_of(exact.key);
  args.value = view_of(exact.value);
  args.output_gradient = view_of(output_gradient);
  args.sequences = view_of(problem.sequences);
  args.feature_map = problem.map;
  if (!initial.empty()) {
    args.initial_state = {view_pool<Format>(initial.data(), slots, heads)};
    args.has_initial_state = options.has_initial_state.empty() ? nullptr : options.has_initial_state.data();
  }
  if (!final_gradient.empty()) {
    args.final_state_gradient = {view_pool<StateGradientFormatOf<Double>>(final_gradient.data(), slots, heads)};
  }
  args.query_gradient = view_of(gradients.query);
  args.key_gradient = view_of(gradients.key);
  args.value_gradient = view_of(gradients.value);
  if constexpr (Config::Mask::reads_encoder) {
    gradients.key_encoder = zero_tensor<double>(exact.key_encoder.shape);
    gradients.value_encoder = zero_tensor<double>(exact.value_encoder.shape);
    args.key_encoder = view_of(exact.key_encoder);
    args.value_encoder = view_of(exact.value_encoder);
    args.key_encoder_gradient = view_of(gradients.key_encoder);
    args.value_encoder_gradient = view_of(gradients.value_encoder);
  }
  args.initial_state_gradient = {view_pool<StateGradientFormatOf<Double>>(gradients.initial_state.data(), slots, heads)};
  reference::backward(args);
  return gradients;
}

/// ‖a − b‖ / ‖b‖. A gradient that cancels to almost nothing is held against a twentieth of the loss's own gradients.
template <class A, class B>
double gradient_error(const std::vector<A>& a, const std::vector<B>& b, double loss_norm) {
  const double norm = relative_error(b, std::vector<double>(b.size()));
  return relative_error(a, b) * (norm == 0 ? 1 : norm) / std::max({norm, loss_norm / 20, 1e-300});
}

/// Gradients of queries, keys and values, the encoder region's too, within a bound of the expected ones, tensor by tensor.
template <class Actual, class Expected, class E>
void check_input_gradients(const Actual& gradients, const Expected& expected, const Tensor<E>& output_gradient,
                           double bound) {
  const auto& dy = output_gradient.values;
  const double norm = relative_error(dy, std::vector<double>(dy.size()));
  CHECK(gradient_error(gradients.query.values, expected.query.values, norm) <= bound);
  CHECK(gradient_error(gradients.key.values, expected.key.values, norm) <= bound);
  CHECK(gradient_error(gradients.value.values, expected.value.values, norm) <= bound);
  CHECK(gradient_error(gradients.key_encoder.values, expected.key_encoder.values, norm) <= bound);
  CHECK(gradient_error(gradients.value_encoder.values, expected.value_encoder.values, norm) <= bound);
}

/// Every gradient within a bound of the expected one, that of the initial state too.
template <class A, class B, class Config>
void check_gradients(const Gradients<A>& gradients, const Gradients<B>& expected, const Loss<Config>& loss, double bound) {
  check_input_gradients(gradients, expected, loss.output_gradient, bound);
  const auto& dy = loss.output_gradient.values;
  const double norm = relative_error(dy, std::vector<double>(dy.size()));
  CHECK(gradient_error(without_padding<StateGradientFormatOf<A>>(gradients.initial_state),
                       without_padding<StateGradientFormatOf<B>>(expected.initial_state), norm) <= bound);
}

/// Gradients of all inputs within the specified bound of the oracle, which works in double on the same rounded inputs.
template <class Backend, class Config>
void check_against_reference(const Problem<Config>& problem, const Loss<Config>& loss, const RunOptions& options = {}) {
  check_gradients(run_backward<Backend>(problem, loss, options), reference_gradients(problem, loss, options), loss,
                  gradient_tolerance<typename Config::Element>());
}
template <class Backend, class Config>
void check_against_reference(const Problem<Config>& problem, const RunOptions& options = {}) {
  check_against_reference<Backend>(problem, Loss<Config>(problem), options);
}

/// With states that come in and leave.
template <class Config>
Loss<Config> loss_with_states(const Problem<Config>& problem) {
  Loss<Config> loss(problem);
  const std::int64_t slots = problem.sequence_count();
  loss.initial_state = random_states<Config>(slots, problem.key.shape.heads, 5, problem.map);
  loss.final_state_gradient = random_state_gradient<Config>(slots, problem.key.shape.heads, 6);
  return loss;
}

/// Sequences of several lengths, prefixes and pads, one of them empty.
template <class Config>
Problem<Config> uneven_problem() {
  Problem<Config> problem({.batch = 4, .tokens = 150, .prefix = 40, .heads = 2, .query_heads = 4});
  problem.sequences.seq_lens = {150, 70, 0, 149};
  problem.sequences.prefix_lens = {40, 35, 0, 7};
  problem.sequences.left_pads = {0, 30, 0, 5};
  return problem;
}

}  // namespace jrt::test
