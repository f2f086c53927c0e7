// SPDX-License-Identifier: Apache-2.0
#include <jrt/policy/padding.hpp>

#include <doctest/doctest.h>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/linear_problem.hpp"

namespace jrt::test {
namespace {

static_assert(Padding<DropPadding> && Padding<ZeroKeyPadding>);

template <class Base>
struct ZeroKeys : Base {
  using Padding = ZeroKeyPadding;
};

TEST_CASE_TEMPLATE("padded positions follow the policy's formula", Config, Prefix<double>, ZeroKeys<Prefix<double>>,
                   ZeroKeys<Causal<double>>, Full<double>) {
  const std::int64_t prefix = Config::Mask::reads_encoder ? 50 : 0;
  Problem<Config> problem({.batch = 3, .tokens = 60, .prefix = prefix});
  problem.sequences.left_pads = {0, 7, 55};
  const auto output = run_prefill<Concurrent>(problem).output;
  CHECK(relative_error(output.values, reference_output(problem).values) <= 1e-12);
}

TEST_CASE("a zeroed key still counts: the two policies differ, and agree without pads") {
  Problem<Prefix<double>> drop({.batch = 1, .tokens = 20, .prefix = 10});
  Problem<ZeroKeys<Prefix<double>>> zero({.batch = 1, .tokens = 20, .prefix = 10});
  CHECK(run_prefill<Simple>(drop).output == run_prefill<Simple>(zero).output);
  drop.sequences.left_pads = {5};
  zero.sequences.left_pads = {5};
  const auto dropped = token_slice(run_prefill<Simple>(drop).output, 5, 15);
  const auto zeroed = token_slice(run_prefill<Simple>(zero).output, 5, 15);
  CHECK(relative_error(zeroed.values, dropped.values) > 0.1);
}

TEST_CASE("padded positions are never read when dropped") {
  using Config = Prefix<double>;
  Problem<Config> problem({.batch = 1, .tokens = 30, .prefix = 12});
  problem.sequences.left_pads = {6};
  const auto expected = run_prefill<Simple>(problem);
  for (auto* tensor : {&problem.query, &problem.key, &problem.value, &problem.key_encoder, &problem.value_encoder}) {
    std::fill_n(tensor->values.begin(), 6 * tensor->shape.heads * tensor->shape.dim, poison<double>());
  }
  CHECK(run_prefill<Simple>(problem).output == expected.output);
}

}  // namespace
}  // namespace jrt::test
