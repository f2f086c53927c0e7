// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>

#include "jrt/detail/host_device.hpp"

namespace jrt {

/// Policy: the factor that turns the numerator φ(q)ᵀS into the output.
///
/// Requires:   `static constexpr bool uses_denominator`, whether φ(q)ᵀz is needed; `static constexpr bool
///             accepts_signed_kernel`, whether it may vanish or be negative; and `T factor(T denominator)` for float and
///             double, callable on host and device. Optional, for `backward`: `T factor_derivative(T denominator)`.
/// Guarantees: `factor` is called once per query with the denominator (0 if it is not used).
/// Cost:       one dot product of length feature_dim per query if the denominator is used.
/// Default:    `SumNormaliser<>`.
/// Tested by:  tests/policy/normaliser_test.cpp
template <class N>
concept Normaliser = requires(float f, double d) {
  { N::uses_denominator } -> std::convertible_to<bool>;
  { N::accepts_signed_kernel } -> std::convertible_to<bool>;
  { N::factor(f) } -> std::same_as<float>;
  { N::factor(d) } -> std::same_as<double>;
};

/// A normaliser that `backward` can differentiate.
template <class N>
concept DifferentiableNormaliser = Normaliser<N> && requires(float f, double d) {
  { N::factor_derivative(f) } -> std::same_as<float>;
  { N::factor_derivative(d) } -> std::same_as<double>;
};

namespace detail {

constexpr double power_of_ten(int exponent) {
  double result = 1;
  for (int i = 0; i < (exponent < 0 ? -exponent : exponent); ++i) {
    result *= 10;
  }
  return exponent < 0 ? 1 / result : result;
}

}  // namespace detail

/// y = φ(q)ᵀS / (φ(q)ᵀz + ε), ε = 10^`EpsilonExponent`; the default 1e-12 is the authors' own. The output of a query that
/// sees no key at all (denominator exactly 0) is 0.
template <int EpsilonExponent = -12>
struct SumNormaliser {
  static constexpr bool uses_denominator = true;
  static constexpr bool accepts_signed_kernel = false;
  static constexpr double epsilon = detail::power_of_ten(EpsilonExponent);

  template <class T>
  JRT_DETAIL_HD static constexpr T factor(T denominator) {
    return denominator == T(0) ? T(0) : T(1) / (denominator + static_cast<T>(epsilon));
  }
  /// −1/(denominator + ε)²; 0 where the output is 0 by definition.
  template <class T>
  JRT_DETAIL_HD static constexpr T factor_derivative(T denominator) {
    return -factor(denominator) * factor(denominator);
  }
};

/// y = φ(q)ᵀS: the numerator alone, for models that normalise afterwards.
struct Unnormalised {
  static constexpr bool uses_denominator = false;
  static constexpr bool accepts_signed_kernel = true;

  template <class T>
  JRT_DETAIL_HD static constexpr T factor(T /*denominator*/) {
    return T(1);
  }
  template <class T>
  JRT_DETAIL_HD static constexpr T factor_derivative(T /*denominator*/) {
    return T(0);
  }
};

namespace detail {

template <class N>
inline constexpr bool is_sum_normaliser = false;
template <int exponent>
inline constexpr bool is_sum_normaliser<SumNormaliser<exponent>> = true;

}  // namespace detail

}  // namespace jrt
