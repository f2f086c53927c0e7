// SPDX-License-Identifier: Apache-2.0
#include <jrt/backward.hpp>
#include <jrt/mixer/hybrid_attention.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <jrt/mixer/stack.hpp>
#include <vector>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/fuzz.hpp"
#include "support/hybrid_backward_problem.hpp"

namespace jrt::test {
namespace {

using Small = Mixed<double, 7>;
using SmallFloat = Mixed<float, 7, 16, 64>;
using Published = Mixed<BFloat16, 128, 16, 64>;

TEST_CASE_TEMPLATE("gradients agree with the chain rule at every size", Config, Small, MixedCausal<double, 0>,
                   Mixed<double, 63>) {
  for (const std::int64_t tokens : edge_lengths()) {
    for (const std::int64_t prefix : {std::int64_t{0}, tokens / 3, tokens}) {
      if (prefix == 0 || Config::Linear::Mask::reads_encoder) {
        CAPTURE(tokens);
        CAPTURE(prefix);
        check_gradients<Simple>(HybridProblem<Config>({.batch = 1, .tokens = tokens, .prefix = prefix}));
      }
    }
  }
}

TEST_CASE_TEMPLATE("gradients are within the bound of each element type", Config, SmallFloat, Mixed<double, 128, 16, 64>,
                   Mixed<Half, 7, 16, 64>, Published) {
  check_gradients<Simple>(HybridProblem<Config>({.batch = 1, .tokens = 300, .prefix = 70, .heads = 1, .query_heads = 2}));
}

TEST_CASE_TEMPLATE("gradients in every layout", Config, SmallFloat, Published) {
  const HybridProblem<Config> problem({.batch = 2, .tokens = 150, .prefix = 60});
  for (const Layout layout : all_layouts) {
    CAPTURE(static_cast<int>(layout));
    check_gradients<Simple>(problem, {.layout = layout});
  }
}

TEST_CASE_TEMPLATE("sequences that are split between workers", Config, SmallFloat, MixedCausal<double, 0>, Published) {
  const std::int64_t prefix = Config::Linear::Mask::reads_encoder ? 700 : 0;
  check_gradients<Concurrent>(
      HybridProblem<Config>({.batch = 1, .tokens = 1500, .prefix = prefix, .heads = 1, .query_heads = 1}));
}

#if defined(JRT_TEST_CUDA)
TEST_CASE("sequences that are split between workers, two slices of values on Hopper") {
  check_gradients<Concurrent>(HybridProblem<Mixed<BFloat16, 128, 16, 112>>(
      {.batch = 1, .tokens = 1500, .prefix = 700, .heads = 1, .query_heads = 1}));
}
#endif

TEST_CASE("sequences of several lengths, some within the window") {
  HybridProblem<Published> problem({.batch = 4, .tokens = 300, .prefix = 90, .heads = 2, .query_heads = 4});
  problem.sequences.seq_lens = {300, 129, 0, 130};
  problem.sequences.prefix_lens = {90, 0, 0, 64};
  check_gradients<Simple>(problem);
}

TEST_CASE("positions without a token have gradient 0") {
  HybridProblem<Small> problem({.batch = 2, .tokens = 40, .prefix = 20});
  problem.sequences.seq_lens = {40, 25};
  problem.sequences.prefix_lens = {20, 12};
  problem.sequences.left_pads = {0, 5};
  check_gradients<Simple>(problem);
  const auto gradients = run_backward<Simple>(problem, random_output_gradient(problem));
  for (std::int64_t t = 0; t < 40; ++t) {
    CAPTURE(t);
    const bool is_token = t >= 5 && t < 25;
    CHECK((gradients.query.at(1, t, 0, 0) != 0) == is_token);
    CHECK((gradients.key.at(1, t, 0, 0) != 0) == is_token);
    CHECK((gradients.value.at(1, t, 0, 0) != 0) == is_token);
  }
}

TEST_CASE_TEMPLATE("gradients left out change no other, to the bit", Config, SmallFloat, Published) {
  const HybridProblem<Config> problem({.batch = 1, .tokens = 130, .prefix = 50, .heads = 1, .query_heads = 2});
  const auto output_gradient = random_output_gradient(problem);
  const auto all = run_backward<Simple>(problem, output_gradient);
  const auto same_if_there = [](const auto& some, const auto& whole) { CHECK((some.values.empty() || some == whole)); };
  for (int left_out = 0; left_out < 32; ++left_out) {
    CAPTURE(left_out);
    const Wanted wanted{(left_out & 1) == 0, (left_out & 2) == 0, (left_out & 4) == 0, (left_out & 8) == 0,
                        (left_out & 16) == 0};
    const auto some = run_backward<Simple>(problem, output_gradient, {}, wanted);
    CHECK(some.query.values.empty() == !wanted.query);
    same_if_there(some.query, all.query);
    same_if_there(some.key, all.key);
    same_if_there(some.value, all.value);
    same_if_there(some.key_encoder, all.key_encoder);
    same_if_there(some.value_encoder, all.value_encoder);
  }
}

TEST_CASE_TEMPLATE("gradients are finite for scores far beyond the range of the exponential", Config, SmallFloat,
                   Published) {
  const HybridProblem<Config> problem({.batch = 1, .tokens = 200, .prefix = 20}, 1, 20);
  const auto gradients = run_backward<Simple>(problem, random_output_gradient(problem));
  for (const auto* tensor : {&gradients.query, &gradients.key, &gradients.value, &gradients.key_encoder}) {
    for (const auto g : tensor->values) {
      REQUIRE(std::isfinite(convert<float>(g)));
    }
  }
}

TEST_CASE("a value that is not a number reaches the gradients that depend on it, by either kind of weight") {
  HybridProblem<SmallFloat> problem({.batch = 1, .tokens = 60, .prefix = 0, .heads = 1, .query_heads = 1});
  problem.value.at(0, 30, 0, 3) = poison<float>();
  const auto gradients = run_backward<Simple>(problem, random_output_gradient(problem));
  CHECK_FALSE(std::isnan(gradients.query.at(0, 29, 0, 0)));
  CHECK(std::isnan(gradients.query.at(0, 33, 0, 0)));  // in the window
  CHECK(std::isnan(gradients.query.at(0, 50, 0, 0)));  // behind it
  CHECK(std::isnan(gradients.key.at(0, 30, 0, 0)));
}

TEST_CASE_TEMPLATE("random calls agree with the chain rule, the same from run to run", Config, Small, SmallFloat, Published,
                   MixedCausal<BFloat16, 15, 16, 64>) {
#if defined(JRT_TEST_CUDA)
  constexpr int cases = 40;
#else
  constexpr int cases = 6;  // the oracle takes most of the time, in every preset
#endif
  Random random(5483);
  for (int i = 0; i < cases; ++i) {
    CAPTURE(i);
    const auto linear = random_problem<typename Config::Linear>(random, 200);
    HybridProblem<Config> problem;
    problem.query = linear.query;
    problem.key = linear.key;
    problem.value = linear.value;
    problem.key_encoder = linear.key_encoder;
    problem.value_encoder = linear.value_encoder;
    problem.sequences = linear.sequences;
    const Layout layout = all_layouts[random.between(0, 3)];
    CAPTURE(problem.tokens());
    CAPTURE(problem.query.shape.batch);
    CAPTURE(problem.sequences.count);
    check_gradients<Concurrent>(problem, {.layout = layout});
    const auto output_gradient = random_output_gradient(problem);
    CHECK(run_backward<Concurrent>(problem, output_gradient, {.layout = layout}) ==
          run_backward<Concurrent>(problem, output_gradient, {.layout = layout}));
  }
}

#if !defined(JRT_TEST_CUDA)
TEST_CASE("gradients do not depend on the number of threads") {
  const HybridProblem<SmallFloat> problem({.batch = 1, .tokens = 1500, .prefix = 500, .heads = 1, .query_heads = 1});
  const auto output_gradient = random_output_gradient(problem);
  CHECK(run_backward<Simple>(problem, output_gradient) == run_backward<Concurrent, Simple>(problem, output_gradient));
}
#endif

}  // namespace
}  // namespace jrt::test
