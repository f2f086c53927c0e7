// SPDX-License-Identifier: Apache-2.0
#include <jrt/policy/products.hpp>

#include <doctest/doctest.h>

#include <type_traits>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/linear_problem.hpp"

namespace jrt::test {
namespace {

static_assert(Products<FloatProducts> && Products<SplitProducts> && !Products<int>);
static_assert(std::is_same_v<Prefix<float>::Products, FloatProducts>);

// A state may be continued with another policy of products.
static_assert(std::is_same_v<StateFormatOf<Prefix<float>>, StateFormatOf<WithSplitProducts<Prefix<float>>>>);

TEST_CASE_TEMPLATE("split products are accepted with every mask and map, and keep to their bound", Config,
                   WithSplitProducts<Prefix<float>>, WithSplitProducts<Causal<float, 8, 20>>,
                   WithSplitProducts<Full<float>>, WithSplitProducts<PrefixElu<float>>,
                   WithoutNormaliser<WithSplitProducts<Causal<float>>>) {
  const Problem<Config> problem({.batch = 2, .tokens = 90, .prefix = Config::Mask::reads_encoder ? 40 : 0});
  const auto initial = random_states<Config>(2, 2, 3);
  const auto results = run_prefill<Concurrent>(problem, initial);
  CHECK(relative_error(results.output.values, reference_output(problem, initial).values) <= output_tolerance<Config>());
  CHECK(run_prefill<Concurrent>(problem, initial).output == results.output);
}

TEST_CASE("nothing changes where elements have 16 bits, and on the CPU") {
  const Problem<Prefix<BFloat16>> plain({.batch = 1, .tokens = 70, .prefix = 30});
  const Problem<WithSplitProducts<Prefix<BFloat16>>> split({.batch = 1, .tokens = 70, .prefix = 30});
  CHECK(run_prefill<Concurrent>(plain).output == run_prefill<Concurrent>(split).output);
#if !defined(JRT_TEST_CUDA)
  const Problem<Prefix<float>> plain_float({.batch = 1, .tokens = 70, .prefix = 30});
  const Problem<WithSplitProducts<Prefix<float>>> split_float({.batch = 1, .tokens = 70, .prefix = 30});
  CHECK(run_prefill<Concurrent>(plain_float).output == run_prefill<Concurrent>(split_float).output);
#endif
}

}  // namespace
}  // namespace jrt::test
