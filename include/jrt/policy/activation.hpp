// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <concepts>

#include "jrt/detail/host_device.hpp"

namespace jrt {

/// Policy: the function applied to each sum of a convolution before the gate.
///
/// Requires:   `static T apply(T sum)` for float and double; for the CUDA backend callable on host and device. Optional,
///             for `backward`: `static T derivative(T sum)`, likewise.
/// Guarantees: called once for every output; in `backward` once more where a segment of tokens meets the next.
/// Cost:       SiLU: one exponential and one division per output.
/// Default:    `Silu`.
/// Tested by:  tests/mixer/gated_convolution_test.cpp
template <class A>
concept Activation = requires(float single, double twice) {
  { A::apply(single) } -> std::same_as<float>;
  { A::apply(twice) } -> std::same_as<double>;
};

/// An activation that `backward` can differentiate.
template <class A>
concept DifferentiableActivation = Activation<A> && requires(float single, double twice) {
  { A::derivative(single) } -> std::same_as<float>;
  { A::derivative(twice) } -> std::same_as<double>;
};

/// x / (1 + e⁻ˣ) (Elfwing et al. 2017), as published.
struct Silu {
  template <class T>
  JRT_DETAIL_HD static T apply(T sum) {
    using std::exp;
    return sum / (T(1) + exp(-sum));
  }
  /// s + x s (1 − s), where s = 1 / (1 + e⁻ˣ): 0 where e⁻ˣ overflows.
  template <class T>
  JRT_DETAIL_HD static T derivative(T sum) {
    using std::exp;
    const T logistic = T(1) / (T(1) + exp(-sum));
    return logistic + sum * logistic * (T(1) - logistic);
  }
};

/// The sum unchanged.
struct NoActivation {
  template <class T>
  JRT_DETAIL_HD static constexpr T apply(T sum) {
    return sum;
  }
  template <class T>
  JRT_DETAIL_HD static constexpr T derivative(T /*sum*/) {
    return T(1);
  }
};

}  // namespace jrt
