// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <jrt/backward.hpp>
#include <jrt/reference/hybrid_attention_backward.hpp>
#include <vector>

#include "support/backward_problem.hpp"
#include "support/hybrid_problem.hpp"

/// Gradients of linear and window attention in one mixer: what a backend computes, after its own prefill, and what the
/// oracle does.
namespace jrt::test {

template <class E>
struct HybridGradients {
  Tensor<E> query;
  Tensor<E> key;
  Tensor<E> value;
  Tensor<E> key_encoder;
  Tensor<E> value_encoder;

  friend bool operator==(const HybridGradients&, const HybridGradients&) = default;
};

template <class Config>
Tensor<typename Config::Element> random_output_gradient(const HybridProblem<Config>& problem, unsigned seed = 9) {
  return random_tensor<typename Config::Element>(problem.output_shape(), seed);
}

template <class Config>
HybridGradients<double> reference_gradients(const HybridProblem<Config>& problem,
                                            const Tensor<typename Config::Element>& output_gradient) {
  using Double = HybridAttention<InDouble<typename Config::Linear>, InDouble<typename Config::Window>>;
  auto query = converted<double>(problem.query);
  auto key = converted<double>(problem.key);
  auto value = converted<double>(problem.value);
  auto key_encoder = converted<double>(problem.key_encoder);
  auto value_encoder = converted<double>(problem.value_encoder);
  auto gradient = converted<double>(output_gradient);
  HybridGradients<double> gradients{zero_tensor<double>(query.shape), zero_tensor<double>(key.shape),
                                    zero_tensor<double>(value.shape), zero_tensor<double>(key_encoder.shape),
                                    zero_tensor<double>(value_encoder.shape)};
  BackwardArgs<Double> args;
  args.query = view_of(query);
  args.key = view_of(key);
  args.value = view_of(value);
  args.key_encoder = view_of(key_encoder);
  args.value_encoder = view_of(value_encoder);
  args.output_gradient = view_of(gradient);
  args.sequences = view_of(problem.sequences);
  args.query_gradient = view_of(gradients.query);
  args.key_gradient = view_of(gradients.key);
  args.value_gradient = view_of(gradients.value);
  args.key_encoder_gradient = view_of(gradients.key_encoder);
  args.value_encoder_gradient = view_of(gradients.value_encoder);
  reference::backward(args);
  return gradients;
}

/// The prefill, which `Forward` runs, and its backward pass; gradients that are not `wanted` are empty.
template <class Backend, class Forward = Backend, class Config>
HybridGradients<typename Config::Element> run_backward(const HybridProblem<Config>& problem,
                                                       const Tensor<typename Config::Element>& output_gradient,
                                                       const RunOptions& options = {}, const Wanted& wanted = {}) {
  using E = typename Config::Element;
  const Layout layout = options.layout;
  PlacedHybrid<Backend, Config> forward(problem, layout);
  Placed<Backend, ComputeType<E>> log_sum_exp(
      TensorShape{problem.query.shape.batch, problem.tokens(), problem.query.shape.heads, 1}, layout);
  Placed<Backend, E> dy(output_gradient, layout);
  Placed<Backend, E> query_gradient(problem.query.shape, layout);
  Placed<Backend, E> key_gradient(problem.key.shape, layout);
  Placed<Backend, E> value_gradient(problem.value.shape, layout);
  Placed<Backend, E> key_encoder_gradient(problem.key_encoder.shape, layout);
  Placed<Backend, E> value_encoder_gradient(problem.value_encoder.shape, layout);

  auto prefill_args = forward.template args<PrefillArgs<Config>>();
  prefill_args.log_sum_exp = log_sum_exp.view();
  JRT_REQUIRE_OK(prefill(prefill_args, Forward::execution()));

  auto args = forward.template args<BackwardArgs<Config>>();
  args.log_sum_exp = log_sum_exp.view();
  args.output_gradient = dy.view();
  const bool encoder = problem.key_encoder.shape.tokens > 0;
  if (wanted.query) {
    args.query_gradient = query_gradient.view();
  }
  if (wanted.key) {
    args.key_gradient = key_gradient.view();
  }
  if (wanted.value) {
    args.value_gradient = value_gradient.view();
  }
  if (wanted.key_encoder && encoder) {
    args.key_encoder_gradient = key_encoder_gradient.view();
  }
  if (wanted.value_encoder && encoder) {
    args.value_encoder_gradient = value_encoder_gradient.view();
  }
  JRT_REQUIRE_OK(backward(args, Backend::execution()));
  for (const auto* const gradient :
       {&query_gradient, &key_gradient, &value_gradient, &key_encoder_gradient, &value_encoder_gradient}) {
    CHECK(gradient->surroundings_intact());
  }
  const auto read = [](bool is_wanted, const Placed<Backend, E>& gradient) {
    return is_wanted ? gradient.read() : Tensor<E>{};
  };
  return {read(wanted.query, query_gradient), read(wanted.key, key_gradient), read(wanted.value, value_gradient),
          read(wanted.key_encoder, key_encoder_gradient), read(wanted.value_encoder, value_encoder_gradient)};
}

/// Gradients of all inputs within the specified bound of the oracle, which works in double on the same rounded inputs.
template <class Backend, class Config>
void check_gradients(const HybridProblem<Config>& problem, const RunOptions& options = {}) {
  constexpr double bound = gradient_tolerance<typename Config::Element>();
  const auto output_gradient = random_output_gradient(problem);
  check_input_gradients(run_backward<Backend>(problem, output_gradient, options),
                        reference_gradients(problem, output_gradient), output_gradient, bound);
}

}  // namespace jrt::test
