// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>

#include "jrt/detail/host_device.hpp"
#include "jrt/policy/feature_map.hpp"
#include "jrt/status.hpp"

namespace jrt {

/// φ(x) = exp(−‖x'‖²/2)/√m · exp(R x'), x' = x/d^(1/4): the positive random features of the Performer (FAVOR+,
/// arXiv 2009.14794), an unbiased estimate of exp(q·k/√d).
///
/// `projection` is R: (m, d), row-major, with orthogonal Gaussian rows drawn by the caller, in memory that the executing
/// device can read; the map does not own it.
template <int HeadDim, int Features>
struct FavorPlus {
  static_assert(HeadDim >= 1 && Features >= 1, "FavorPlus<HeadDim, Features>: both dimensions must be at least 1.");
  static constexpr int input_dim = HeadDim;
  static constexpr int feature_dim = Features;
  static constexpr const char* name = "favor+";
  static constexpr bool nonnegative_kernel = true;
  static constexpr bool has_closed_form = false;
  static constexpr bool needs_position = false;

  const float* projection = nullptr;

  [[nodiscard]] Status check() const {
    return projection != nullptr
               ? Status{}
               : Status::error(StatusCode::invalid_argument,
                               "argument 'feature_map': FavorPlus has a null projection; give it the %d x %d matrix R.",
                               Features, HeadDim);
  }

  template <class T>
  JRT_DETAIL_HD void expand(const T* x, T* features) const {
    const T scale = T(1) / std::sqrt(std::sqrt(static_cast<T>(HeadDim)));
    T scaled[HeadDim];
    T half_square = 0;
    for (int i = 0; i < HeadDim; ++i) {
      scaled[i] = x[i] * scale;
      half_square += scaled[i] * scaled[i] / T(2);
    }
    const T weight = T(1) / std::sqrt(static_cast<T>(Features));
    for (int f = 0; f < Features; ++f) {
      T dot = 0;
      for (int i = 0; i < HeadDim; ++i) {
        dot += static_cast<T>(projection[static_cast<std::int64_t>(f) * HeadDim + i]) * scaled[i];
      }
      // One exponential of the difference: the two factors alone overflow and underflow much earlier.
      features[f] = weight * std::exp(dot - half_square);
    }
  }

  /// ∂φ_f/∂x_i = φ_f(x) (R_fi − x'_i)/d^(1/4).
  template <class T>
  JRT_DETAIL_HD void expand_vjp(const T* x, const T* features_gradient, T* x_gradient) const {
    T features[feature_dim];
    expand(x, features);
    const T scale = T(1) / std::sqrt(std::sqrt(static_cast<T>(HeadDim)));
    T sum = 0;
    for (int i = 0; i < HeadDim; ++i) {
      x_gradient[i] = T(0);
    }
    for (int f = 0; f < Features; ++f) {
      const T weighted = features_gradient[f] * features[f];
      sum += weighted;
      for (int i = 0; i < HeadDim; ++i) {
        x_gradient[i] += weighted * static_cast<T>(projection[static_cast<std::int64_t>(f) * HeadDim + i]);
      }
    }
    for (int i = 0; i < HeadDim; ++i) {
      x_gradient[i] = (x_gradient[i] - sum * x[i] * scale) * scale;
    }
  }
};

}  // namespace jrt
