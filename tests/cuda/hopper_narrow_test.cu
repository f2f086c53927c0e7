// SPDX-License-Identifier: Apache-2.0
// The kernels for sm_90a with d = 8, whose packing is another one than that of d = 16; and with sequences of different
// lengths.
#include <jrt/cuda.cuh>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/linear_problem.hpp"

namespace jrt::test {
namespace {

TEST_CASE_TEMPLATE("d = 8: widths of v, slices, masks, grouped heads, initial states", C, Prefix<BFloat16, 8, 64>,
                   Causal<Half, 8, 40>, Full<BFloat16, 8, 72>, SplitByLength<Prefix<Half, 8, 64>, 64>) {
  for (const std::int64_t tokens : {1, 64, 190}) {
    CAPTURE(tokens);
    const Problem<C> problem(
        {.batch = 2, .tokens = tokens, .prefix = C::Mask::reads_encoder ? tokens / 2 : 0, .heads = 2, .query_heads = 4});
    const auto initial = random_states<C>(2, 2, 3);
    const auto results = run_prefill<Concurrent>(problem, initial);
    CHECK(relative_error(results.output.values, reference_output(problem, initial).values) <=
          tolerance<typename C::Element>());
  }
}

TEST_CASE("d = 8: the state goes on as the decode step expects it") {
  using C = Prefix<BFloat16, 8, 64>;
  const Problem<C> problem({.batch = 2, .tokens = 200, .prefix = 100, .heads = 2, .query_heads = 2});
  const auto expected = reference_output(problem);
  Problem<C> first = problem;
  first.query = token_slice(problem.query, 0, 197);
  first.key = token_slice(problem.key, 0, 197);
  first.value = token_slice(problem.value, 0, 197);
  auto results = run_prefill<Concurrent>(first);
  const auto steps = run_decode<Concurrent>(problem, 197, 3, results.states);
  CHECK(relative_error(steps.values, token_slice(expected, 197, 3).values) <= tolerance<BFloat16>());
}

TEST_CASE("packed sequences start in order of length: the bits are those of one at a time") {
  using C = SplitByLength<Prefix<BFloat16, 8, 64>, 8192>;  // none is divided
  // On average so long that order is worth it.
  const std::vector<std::int64_t> lengths{1000, 0, 3000, 64, 3000, 1, 5000, 650};
  std::int64_t total = 0;
  Problem<C> packed;
  packed.sequences.count = static_cast<std::int64_t>(lengths.size());
  packed.sequences.cu_seqlens = packed.sequences.cu_encoder_seqlens = {0};
  std::int64_t total_encoder = 0;
  for (const std::int64_t tokens : lengths) {
    packed.sequences.cu_seqlens.push_back(static_cast<std::int32_t>(total += tokens));
    packed.sequences.cu_encoder_seqlens.push_back(static_cast<std::int32_t>(total_encoder += tokens / 3));
  }
  const Problem<C> all({.batch = 1, .tokens = total, .prefix = total_encoder, .heads = 2, .query_heads = 2});
  packed.query = all.query;
  packed.key = all.key;
  packed.value = all.value;
  packed.key_encoder = all.key_encoder;
  packed.value_encoder = all.value_encoder;
  const auto together = run_prefill<Concurrent>(packed);
  CHECK(relative_error(together.output.values, reference_output(packed).values) <= tolerance<BFloat16>());
  for (std::size_t b = 0; b < lengths.size(); ++b) {
    CAPTURE(b);
    const std::int64_t first = packed.sequences.cu_seqlens[b];
    const std::int64_t first_encoder = packed.sequences.cu_encoder_seqlens[b];
    Problem<C> one;
    one.query = token_slice(all.query, first, lengths[b]);
    one.key = token_slice(all.key, first, lengths[b]);
    one.value = token_slice(all.value, first, lengths[b]);
    one.key_encoder = token_slice(all.key_encoder, first_encoder, lengths[b] / 3);
    one.value_encoder = token_slice(all.value_encoder, first_encoder, lengths[b] / 3);
    if (lengths[b] > 0) {
      CHECK(run_prefill<Concurrent>(one).output == token_slice(together.output, first, lengths[b]));
    }
  }
}

TEST_CASE("d = 8, half: sums, weights and products beyond 65504") {
  using C = Causal<Half, 8, 64>;
  Problem<C> problem({.batch = 1, .tokens = 3000, .heads = 1, .query_heads = 1});
  SUBCASE("large keys and values") {
    scale(problem.key, 100, 20);
    scale(problem.value, 50, 50);
  }
  SUBCASE("small values") {
    scale(problem.value, 1e-3F, 0);
  }
  SUBCASE("small keys, large queries") {
    scale(problem.key, 0.02F, 0);
    scale(problem.query, 60, 0);
  }
  SUBCASE("large queries on a large state") {
    scale(problem.key, 0.1F, 0);
    scale(problem.value, 1000, 10000);
    scale(problem.query, 100, 0);
  }
  const auto results = run_prefill<Concurrent>(problem);
  CHECK(relative_error(results.output.values, reference_output(problem).values) <= tolerance<Half>());
}

}  // namespace
}  // namespace jrt::test
