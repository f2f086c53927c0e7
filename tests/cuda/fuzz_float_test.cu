// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "support/configs.hpp"
#include "support/fuzz.hpp"

namespace jrt::test {
namespace {

TEST_CASE_TEMPLATE("random calls agree with the oracle: float and double", Config, Prefix<float, 16, 64>,
                   SplitByLength<Prefix<float, 16, 24>, 64>, Causal<float, 8, 8>, SplitByLength<Full<float, 16, 112>, 96>,
                   Prefix<float, 24, 48>, Causal<float, 32, 40>, Prefix<float, 64, 16>, PrefixElu<float, 32, 256>,
                   SplitByLength<Prefix<double, 16, 72>, 64>) {
  const int cases = Config::FeatureMap::feature_dim > 500 ? 15 : 35;
  MESSAGE("worst error: " << fuzz<Concurrent, Config>(2407, cases, 300));
}

}  // namespace
}  // namespace jrt::test
