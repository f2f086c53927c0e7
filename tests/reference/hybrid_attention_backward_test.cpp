// SPDX-License-Identifier: Apache-2.0
// The oracle of the hybrid mixer's gradients against finite differences of its oracle of outputs.
#include <jrt/reference/hybrid_attention_backward.hpp>

#include <doctest/doctest.h>

#include "support/backend.hpp"
#include "support/finite_differences.hpp"
#include "support/hybrid_backward_problem.hpp"

namespace jrt::test {
namespace {

template <class Config>
void check_differences(HybridProblem<Config> problem) {
  constexpr double bound = 1e-6;
  const auto output_gradient = random_output_gradient(problem);
  const auto gradients = reference_gradients(problem, output_gradient);
  const auto check = [&](const Tensor<double>& gradient, Tensor<double>& input) {
    const auto slopes = central_differences(
        input.values, [&] { return sum_of_products(reference_hybrid(problem).values, output_gradient.values); });
    CHECK(relative_error(gradient.values, slopes) <= bound);
  };
  check(gradients.query, problem.query);
  check(gradients.key, problem.key);
  check(gradients.value, problem.value);
  check(gradients.key_encoder, problem.key_encoder);
  check(gradients.value_encoder, problem.value_encoder);
}

TEST_CASE("gradients are the slopes of the outputs") {
  check_differences(
      HybridProblem<Mixed<double, 2, 3, 2>>({.batch = 1, .tokens = 9, .prefix = 4, .heads = 1, .query_heads = 2}));
  check_differences(HybridProblem<MixedCausal<double, 0, 3, 2>>({.batch = 2, .tokens = 6, .prefix = 0}));
}

TEST_CASE("for sequences of several lengths, with pads") {
  HybridProblem<Mixed<double, 1, 3, 2>> problem({.batch = 2, .tokens = 7, .prefix = 4, .heads = 1, .query_heads = 2});
  problem.sequences.seq_lens = {7, 5};
  problem.sequences.prefix_lens = {4, 3};
  problem.sequences.left_pads = {0, 2};
  check_differences(problem);
}

}  // namespace
}  // namespace jrt::test
