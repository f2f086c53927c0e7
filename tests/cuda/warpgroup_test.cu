// SPDX-License-Identifier: Apache-2.0
// WarpgroupEngine's and SplitEngine's kernels for sm_90a, and float as two terms on the kernels for all GPUs
// (JRT_TEST_KERNELS=portable).
#include <jrt/cuda.cuh>

#include <doctest/doctest.h>

#include <limits>
#include <string>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/linear_problem.hpp"

namespace jrt::test {
namespace {

TEST_CASE("used for bfloat16 at d = 32 and 64, and for float at d = 16 where products may be split") {
  using detail::cuda::SplitLayout;
  using detail::cuda::WarpgroupLayout;
  CHECK(WarpgroupLayout<Prefix<BFloat16, 32, 64>>::supported);
  CHECK(WarpgroupLayout<Full<BFloat16, 32, 100>>::supported);
  CHECK(WarpgroupLayout<Prefix<BFloat16, 64, 64>>::supported);
  CHECK(SplitLayout<WithSplitProducts<Causal<float, 16, 20>>>::supported);
  CHECK_FALSE(SplitLayout<Prefix<float, 16, 64>>::supported);
  CHECK_FALSE(SplitLayout<WithSplitProducts<Prefix<BFloat16, 16, 64>>>::supported);
  CHECK_FALSE(WarpgroupLayout<Prefix<BFloat16, 16, 64>>::supported);
  CHECK_FALSE(SplitLayout<WithSplitProducts<PrefixElu<float, 16, 64>>>::supported);
  CHECK(detail::cuda::MmaLayout<WithSplitProducts<Prefix<float, 16, 64>>>::supported);
  CHECK_FALSE(detail::cuda::MmaLayout<Prefix<float, 16, 64>>::supported);
}

TEST_CASE_TEMPLATE("there where Hopper's other kernels are", C, Prefix<BFloat16, 32, 64>, Causal<BFloat16, 64, 20>,
                   WithSplitProducts<Prefix<float, 16, 64>>) {
  const Cuda on = Concurrent::execution();
  CHECK(detail::cuda::WarpgroupPrefill<C>::available(on) ==
        detail::cuda::HopperPrefill<Prefix<BFloat16, 16, 64>>::available(on));
}

TEST_CASE_TEMPLATE("a small problem", C, WithSplitProducts<Causal<float, 16, 64>>, WithSplitProducts<Prefix<float, 16, 64>>,
                   Causal<BFloat16, 32, 64>, Prefix<BFloat16, 32, 64>, Causal<BFloat16, 64, 20>) {
  for (const std::int64_t tokens : {1, 16, 64, 65, 128, 192, 193, 400}) {
    CAPTURE(tokens);
    const Problem<C> problem(
        {.batch = 1, .tokens = tokens, .prefix = C::Mask::reads_encoder ? tokens / 2 : 0, .heads = 1, .query_heads = 2});
    const auto expected = reference_output(problem).values;
    const auto results = run_prefill<Concurrent>(problem);
    CHECK(relative_error(results.output.values, expected) <= output_tolerance<C>());
    CHECK(run_prefill<Concurrent>(problem).output == results.output);
  }
}

TEST_CASE_TEMPLATE("what lies behind a sequence's last token does not matter, whatever it is", C,
                   WithSplitProducts<Prefix<float, 16, 64>>, Causal<BFloat16, 32, 64>) {
  using E = typename C::Element;
  for (const std::int64_t tokens : {1, 63, 65, 191, 200}) {
    Problem<C> problem({.batch = 2, .tokens = 250, .prefix = C::Mask::reads_encoder ? tokens / 2 : 0});
    problem.sequences.seq_lens = {static_cast<std::int32_t>(tokens), static_cast<std::int32_t>(tokens)};
    const auto expected = run_prefill<Concurrent>(problem);
    for (Tensor<E>* tensor : {&problem.query, &problem.key, &problem.value}) {
      for (std::int64_t b = 0; b < 2; ++b) {
        for (std::int64_t t = tokens; t < tensor->shape.tokens; ++t) {
          for (std::int64_t h = 0; h < tensor->shape.heads; ++h) {
            for (std::int64_t c = 0; c < tensor->shape.dim; ++c) {
              tensor->values[tensor->index(b, t, h, c)] = convert<E>(std::numeric_limits<float>::quiet_NaN());
            }
          }
        }
      }
    }
    const auto results = run_prefill<Concurrent>(problem);
    CHECK(results.output == expected.output);
    CHECK(results.states == expected.states);
  }
}

TEST_CASE("split products of a long sequence: truncation in the matrix unit does not add up") {
  using C = WithSplitProducts<Causal<float, 16, 64>>;
  using F = StateFormatOf<C>;
  Problem<C> problem({.batch = 1, .tokens = 8000, .heads = 1, .query_heads = 1});
  for (float& number : problem.value.values) {
    number = number < 0 ? -number : number;  // sums that only grow
  }
  const auto results = run_prefill<Concurrent>(problem);
  const double error = relative_error(results.output.values, reference_output(problem).values);
  MESSAGE("error of outputs: " << error);
  CHECK(error <= 1e-5);
  CHECK(results.states[F::normaliser_offset + 152] == 8000.0F);
  using Plain = Causal<float, 16, 64>;
  Problem<Plain> plain;
  plain.query = problem.query;
  plain.key = problem.key;
  plain.value = problem.value;
  const double state_error =
      relative_error(used_numbers<C>(results.states), used_numbers<Plain>(run_prefill<Concurrent>(plain).states));
  MESSAGE("difference of states: " << state_error);
  CHECK(state_error <= 1e-5);
}

}  // namespace
}  // namespace jrt::test
