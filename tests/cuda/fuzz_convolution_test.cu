// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "support/fuzz_convolution.hpp"

namespace jrt::test {
namespace {

template <class Base>
struct WithoutActivation : Base {
  using Activation = NoActivation;
};
template <class Base, class WeightT>
struct WithWeights : Base {
  using Weight = WeightT;
};

TEST_CASE_TEMPLATE("random calls of the convolution agree with the formula", Config, GatedConvolution<float, 3>,
                   GatedConvolution<float, 7>, GatedConvolution<double, 4>, GatedConvolution<BFloat16, 3>,
                   GatedConvolution<BFloat16, 8>, GatedConvolution<Half, 2>, GatedConvolution<Half, 5>,
                   WithoutActivation<GatedConvolution<float, 2>>, WithoutActivation<GatedConvolution<Half, 6>>,
                   WithWeights<GatedConvolution<BFloat16, 4>, float>) {
  MESSAGE("worst error: " << fuzz_mixer<Concurrent, FuzzedConvolution, Config>(2403, 25, 300));
}

}  // namespace
}  // namespace jrt::test
