// SPDX-License-Identifier: Apache-2.0
#include <jrt/policy/normaliser.hpp>

#include <doctest/doctest.h>

#include <limits>

namespace jrt {
namespace {

static_assert(Normaliser<SumNormaliser<>> && Normaliser<SumNormaliser<-6>> && Normaliser<Unnormalised>);

TEST_CASE("the sum normaliser divides by the sum and epsilon") {
  CHECK(SumNormaliser<>::epsilon == doctest::Approx(1e-12).epsilon(1e-14));
  CHECK(SumNormaliser<-6>::epsilon == doctest::Approx(1e-6).epsilon(1e-14));
  CHECK(SumNormaliser<-2>::factor(4.0) == doctest::Approx(1 / 4.01).epsilon(1e-14));
  CHECK(SumNormaliser<>::factor(4.0F) == 0.25F);
}

TEST_CASE("no key gives zero, not one over epsilon") {
  CHECK(SumNormaliser<>::factor(0.0) == 0);
  CHECK(SumNormaliser<>::factor(0.0F) == 0);
}

TEST_CASE("without normaliser the factor is one, whatever the sum") {
  CHECK(Unnormalised::factor(std::numeric_limits<float>::quiet_NaN()) == 1);
}

}  // namespace
}  // namespace jrt
