// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "support/configs.hpp"
#include "support/fuzz.hpp"

namespace jrt::test {
namespace {

template <class E, int d, int dv>
struct BFloat16State : Prefix<E, d, dv> {
  using StateScalar = BFloat16;
};
template <class Base>
struct UpstreamPads : Base {
  using Padding = ZeroKeyPadding;
};

TEST_CASE_TEMPLATE("random calls agree with the oracle: bfloat16, d = 32 and 64", Config, Prefix<BFloat16, 32, 64>,
                   SplitByLength<Causal<BFloat16, 32, 112>, 200>, SplitByLength<Full<BFloat16, 32, 24>, 96>,
                   BFloat16State<BFloat16, 32, 20>, UpstreamPads<Causal<BFloat16, 32, 64>>, Prefix<BFloat16, 64, 40>) {
  MESSAGE("worst error: " << fuzz<Concurrent, Config>(561, Config::FeatureMap::input_dim > 32 ? 10 : 25, 600));
}

}  // namespace
}  // namespace jrt::test
