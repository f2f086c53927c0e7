// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <jrt/policy/softmax_halves.hpp>

#include "support/configs.hpp"
#include "support/fuzz.hpp"

namespace jrt::test {
namespace {

template <class Base>
struct BFloat16State : Base {
  using StateScalar = BFloat16;
};
template <class E>
struct Hedgehog : PrefixLinearAttention<E, 64, 256> {
  using FeatureMap = SoftmaxHalves<64>;
};
struct DenseRows : PrefixLinearAttention<BFloat16, 8, 40> {
  using FeatureMap = Taylor2<8, DensePacking>;
};
template <class Base>
struct UpstreamPads : Base {
  using Padding = ZeroKeyPadding;
};

TEST_CASE_TEMPLATE("random calls agree with the oracle: bfloat16 and half", Config, Prefix<BFloat16, 16, 64>,
                   SplitByLength<Prefix<BFloat16, 16, 112>, 128>, UpstreamPads<Causal<BFloat16, 16, 96>>,
                   Causal<Half, 16, 64>, SplitByLength<Full<Half, 16, 64>, 96>, Full<BFloat16, 8, 32>, Prefix<Half, 24, 48>,
                   WithoutNormaliser<Prefix<BFloat16, 16, 8>>, UpstreamPads<Causal<BFloat16, 16, 64>>,
                   BFloat16State<Prefix<BFloat16, 16, 64>>, DenseRows, SplitByLength<Hedgehog<BFloat16>, 96>,
                   PrefixElu<Half, 64, 120>, Prefix<BFloat16, 24, 64>, Causal<BFloat16, 64, 16>) {
  MESSAGE("worst error: " << fuzz<Concurrent, Config>(5483, Config::FeatureMap::feature_dim > 500 ? 15 : 35, 300));
}

}  // namespace
}  // namespace jrt::test
