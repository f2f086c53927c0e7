// SPDX-License-Identifier: Apache-2.0
// Every kernel once, on problems small enough for compute-sanitizer's slower tools.
#include <doctest/doctest.h>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/linear_problem.hpp"

namespace jrt::test {
namespace {

TEST_CASE_TEMPLATE("every kernel of each engine runs, split and unsplit", Config, Prefix<BFloat16, 16, 64>,
                   SplitByLength<Prefix<BFloat16, 16, 64>, 64>, SplitByLength<Full<Half, 16, 40>, 64>,
                   PrefixElu<BFloat16, 16, 112>, Prefix<Half, 24, 48>, SplitByLength<Prefix<float, 16, 64>, 64>,
                   Causal<float, 32, 16>, SplitByLength<WithSplitProducts<Prefix<float, 16, 64>>, 64>,
                   SplitByLength<Prefix<BFloat16, 32, 64>, 64>, Causal<BFloat16, 64, 16>,
                   SplitByLength<Prefix<BFloat16, 16, 112>, 64>) {
  const std::int64_t prefix = Config::Mask::reads_encoder ? 70 : 0;
  const Problem<Config> problem({.batch = 1, .tokens = 140, .prefix = prefix, .heads = 1, .query_heads = 2});
  const auto initial = random_states<Config>(1, 1, 3);
  auto results = run_prefill<Concurrent>(problem, initial);
  CHECK(relative_error(results.output.values, reference_output(problem, initial).values) <= output_tolerance<Config>());
  run_decode<Concurrent>(problem, 0, 3, results.states, 2);
}

}  // namespace
}  // namespace jrt::test
