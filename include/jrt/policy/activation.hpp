// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <concepts>

#include "jrt/detail/host_device.hpp"

namespace jrt {

/// Policy: the function applied to each sum of a convolution before the gate.
///
/// Requires:   `static T apply(T sum)` for float and double; for the CUDA backend callable on host and device.
/// Guarantees: called once for every output.
/// Cost:       SiLU: one exponential and one division per output.
/// Default:    `Silu`.
/// Tested by:  tests/mixer/gated_convolution_test.cpp
template <class A>
concept Activation = requires(float single, double twice) {
  { A::apply(single) } -> std::same_as<float>;
  { A::apply(twice) } -> std::same_as<double>;
};

/// x / (1 + e⁻ˣ) (Elfwing et al. 2017), as published.
struct Silu {
  template <class T>
  JRT_DETAIL_HD static T apply(T sum) {
    using std::exp;
    return sum / (T(1) + exp(-sum));
  }
};

/// The sum unchanged.
struct NoActivation {
  template <class T>
  JRT_DETAIL_HD static constexpr T apply(T sum) {
    return sum;
  }
};

}  // namespace jrt
