// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <jrt/mixer/linear_attention.hpp>
#include <jrt/policy/elementwise_maps.hpp>

/// Operators that several tests use.
namespace jrt::test {

template <class E, int d = 16, int dv = 24>
using Prefix = PrefixLinearAttention<E, d, dv>;
template <class E, int d = 16, int dv = 24>
using Causal = BasedLinearAttention<E, d, dv>;

template <class E, int d = 16, int dv = 24>
struct Full : PrefixLinearAttention<E, d, dv> {
  using Mask = FullMask;
};

template <class Base>
struct WithoutNormaliser : Base {
  using Normaliser = Unnormalised;
};

/// No closed form: the scores inside a chunk come from the features.
template <class E, int d = 16, int dv = 24>
struct PrefixElu : PrefixLinearAttention<E, d, dv> {
  using FeatureMap = EluPlusOne<d>;
};

template <class Base>
struct WithSplitProducts : Base {
  using Products = SplitProducts;
};

template <class Base, std::int64_t tokens>
struct SplitByLength : Base {
  using Split = LengthSplit<tokens>;
};

}  // namespace jrt::test
