// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "support/configs.hpp"
#include "support/fuzz.hpp"

namespace jrt::test {
namespace {

template <class Base>
struct UpstreamPads : Base {
  using Padding = ZeroKeyPadding;
};

TEST_CASE_TEMPLATE("random calls agree with the oracle: float as two terms", Config,
                   WithSplitProducts<Prefix<float, 16, 64>>, SplitByLength<WithSplitProducts<Causal<float, 16, 112>>, 64>,
                   WithSplitProducts<Full<float, 16, 40>>, SplitByLength<WithSplitProducts<Prefix<float, 16, 20>>, 200>,
                   UpstreamPads<WithSplitProducts<Causal<float, 16, 64>>>,
                   WithoutNormaliser<WithSplitProducts<Prefix<float, 16, 8>>>, WithSplitProducts<Prefix<float, 24, 48>>,
                   WithSplitProducts<PrefixElu<float, 32, 100>>) {
  MESSAGE("worst error: " << fuzz<Concurrent, Config>(561, 25, 600));
}

}  // namespace
}  // namespace jrt::test
