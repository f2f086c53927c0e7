// SPDX-License-Identifier: Apache-2.0
#include <jrt/policy/activation.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <initializer_list>

namespace jrt::test {
namespace {

static_assert(DifferentiableActivation<Silu> && DifferentiableActivation<NoActivation>);

struct WithoutDerivative {
  template <class T>
  static T apply(T sum) {
    return sum;
  }
};
static_assert(Activation<WithoutDerivative> && !DifferentiableActivation<WithoutDerivative>);

TEST_CASE_TEMPLATE("derivatives are those of the function", A, Silu, NoActivation) {
  for (double x = -20; x <= 20; x += 0.37) {
    CAPTURE(x);
    constexpr double h = 1e-5;
    const double difference = (A::apply(x + h) - A::apply(x - h)) / (2 * h);
    CHECK(std::abs(A::derivative(x) - difference) <= 1e-9);
    CHECK(std::abs(static_cast<double>(A::derivative(static_cast<float>(x))) - A::derivative(x)) <= 1e-6);
  }
}

TEST_CASE_TEMPLATE("SiLU far from 0", T, float, double) {
  for (const T x : {T(60), T(100), T(1000), T(1e30)}) {
    CAPTURE(x);
    CHECK(Silu::apply(x) == x);
    CHECK(Silu::derivative(x) == 1);
    CHECK(std::abs(Silu::apply(-x)) <= T(1e-20));
    CHECK(std::abs(Silu::derivative(-x)) <= T(1e-20));
  }
  CHECK(Silu::derivative(T(0)) == T(0.5));
}

}  // namespace
}  // namespace jrt::test
