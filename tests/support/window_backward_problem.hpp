// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <jrt/backward.hpp>
#include <jrt/mixer/window_attention.hpp>
#include <jrt/reference/window_attention_backward.hpp>

#include "support/tensor.hpp"
#include "support/window_problem.hpp"

/// Gradients of window attention: what a backend computes, after its own prefill, and what the oracle does.
namespace jrt::test {

template <class E>
struct WindowGradients {
  Tensor<E> query;
  Tensor<E> key;
  Tensor<E> value;

  friend bool operator==(const WindowGradients&, const WindowGradients&) = default;
};

/// Which gradients a call computes, and how its tensors lie in memory.
struct BackwardOptions {
  bool query = true;
  bool key = true;
  bool value = true;
  Layout layout = Layout::bthd;
};

template <class Config>
Tensor<typename Config::Element> random_output_gradient(const WindowProblem<Config>& problem, unsigned seed = 9) {
  return random_tensor<typename Config::Element>(problem.output_shape(), seed);
}

template <class Config>
WindowGradients<double> reference_gradients(const WindowProblem<Config>& problem,
                                            const Tensor<typename Config::Element>& output_gradient) {
  using Double = InDouble<Config>;
  auto query = converted<double>(problem.query);
  auto key = converted<double>(problem.key);
  auto value = converted<double>(problem.value);
  auto gradient = converted<double>(output_gradient);
  WindowGradients<double> gradients{zero_tensor<double>(query.shape), zero_tensor<double>(key.shape),
                                    zero_tensor<double>(value.shape)};
  BackwardArgs<Double> args;
  args.query = view_of(query);
  args.key = view_of(key);
  args.value = view_of(value);
  args.output_gradient = view_of(gradient);
  args.sequences = view_of(problem.sequences);
  args.scale = problem.scale;
  args.query_gradient = view_of(gradients.query);
  args.key_gradient = view_of(gradients.key);
  args.value_gradient = view_of(gradients.value);
  reference::backward(args);
  return gradients;
}

/// The tensors of a prefill and of its backward pass in a backend's memory; the prefill has run.
template <class Backend, class Config>
struct PlacedBackward {
  using E = typename Config::Element;
  using T = ComputeType<E>;

  PlacedWindow<Backend, Config> prefill;
  PlacedSequences<Backend> sequences;
  Placed<Backend, T> log_sum_exp;
  Placed<Backend, E> output_gradient;
  Placed<Backend, E> query_gradient;
  Placed<Backend, E> key_gradient;
  Placed<Backend, E> value_gradient;
  double scale;

  PlacedBackward(const WindowProblem<Config>& problem, const Tensor<E>& gradient, Layout layout)
      : prefill(problem, layout),
        sequences(problem.sequences),
        log_sum_exp(TensorShape{problem.query.shape.batch, problem.tokens(), problem.query.shape.heads, 1}, layout),
        output_gradient(gradient, layout),
        query_gradient(problem.query.shape, layout),
        key_gradient(problem.key.shape, layout),
        value_gradient(problem.value.shape, layout),
        scale(problem.scale) {
    auto args = prefill.template args<PrefillArgs<Config>>();
    args.sequences = sequences.view();
    args.log_sum_exp = log_sum_exp.view();
    JRT_REQUIRE_OK(jrt::prefill(args, Backend::execution()));
  }

  BackwardArgs<Config> args(const BackwardOptions& options) {
    BackwardArgs<Config> args;
    args.query = prefill.query.view();
    args.key = prefill.key.view();
    args.value = prefill.value.view();
    args.output = prefill.output.view();
    args.log_sum_exp = log_sum_exp.view();
    args.sequences = sequences.view();
    args.scale = scale;
    args.output_gradient = output_gradient.view();
    if (options.query) {
      args.query_gradient = query_gradient.view();
    }
    if (options.key) {
      args.key_gradient = key_gradient.view();
    }
    if (options.value) {
      args.value_gradient = value_gradient.view();
    }
    return args;
  }

  /// The gradients that a call wrote, empty ones for those that it did not want. Nothing else was touched.
  WindowGradients<E> read(const BackwardOptions& options) const {
    CHECK(query_gradient.surroundings_intact());
    CHECK(key_gradient.surroundings_intact());
    CHECK(value_gradient.surroundings_intact());
    CHECK(log_sum_exp.surroundings_intact());
    return {options.query ? query_gradient.read() : Tensor<E>{}, options.key ? key_gradient.read() : Tensor<E>{},
            options.value ? value_gradient.read() : Tensor<E>{}};
  }
};

template <class Backend, class Config>
WindowGradients<typename Config::Element> run_backward(const WindowProblem<Config>& problem,
                                                       const Tensor<typename Config::Element>& output_gradient,
                                                       const BackwardOptions& options = {}) {
  PlacedBackward<Backend, Config> placed(problem, output_gradient, options.layout);
  JRT_REQUIRE_OK(backward(placed.args(options), Backend::execution()));
  return placed.read(options);
}

/// The relative error of a gradient. That of a softmax over one key is 0: there the error is the root mean square.
template <class E>
double gradient_error(const Tensor<E>& actual, const Tensor<double>& expected) {
  const bool is_zero = std::all_of(expected.values.begin(), expected.values.end(), [](double g) { return g == 0; });
  const double error = relative_error(actual.values, expected.values);
  return is_zero ? error / std::sqrt(static_cast<double>(std::max<std::size_t>(1, expected.values.size()))) : error;
}

/// Gradients within the specified bound of the oracle, which works in double on the same rounded inputs. Returns the worst
/// error of the three.
template <class Backend, class Config>
double check_gradients(const WindowProblem<Config>& problem, const BackwardOptions& options = {}) {
  using E = typename Config::Element;
  const auto output_gradient = random_output_gradient(problem);
  const auto gradients = run_backward<Backend>(problem, output_gradient, options);
  const auto expected = reference_gradients(problem, output_gradient);
  const double errors[] = {gradient_error(gradients.query, expected.query), gradient_error(gradients.key, expected.key),
                           gradient_error(gradients.value, expected.value)};
  double worst = 0;
  for (const double error : errors) {
    CHECK(error <= gradient_tolerance<E>());
    worst = error > worst ? error : worst;
  }
  return worst;
}

}  // namespace jrt::test
