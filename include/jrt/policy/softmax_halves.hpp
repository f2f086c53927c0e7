// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "jrt/detail/host_device.hpp"
#include "jrt/policy/feature_map.hpp"

namespace jrt {

/// φ(x) = [softmax(x), softmax(−x)], D = 2d: Hedgehog's map (arXiv 2402.04347). Its learned projection is the caller's.
template <int HeadDim>
struct SoftmaxHalves {
  static_assert(HeadDim >= 1, "SoftmaxHalves<HeadDim>: HeadDim must be at least 1.");
  static constexpr int input_dim = HeadDim;
  static constexpr int feature_dim = 2 * HeadDim;
  static constexpr const char* name = "softmax-halves";
  static constexpr bool nonnegative_kernel = true;
  static constexpr bool has_closed_form = false;
  static constexpr bool needs_position = false;

  template <class T>
  JRT_DETAIL_HD void expand(const T* x, T* features) const {
    T largest = x[0];
    T smallest = x[0];
    for (int i = 1; i < HeadDim; ++i) {
      largest = x[i] > largest ? x[i] : largest;
      smallest = x[i] < smallest ? x[i] : smallest;
    }
    T sum = 0;
    T negative_sum = 0;
    for (int i = 0; i < HeadDim; ++i) {
      features[i] = std::exp(x[i] - largest);
      features[HeadDim + i] = std::exp(smallest - x[i]);
      sum += features[i];
      negative_sum += features[HeadDim + i];
    }
    for (int i = 0; i < HeadDim; ++i) {
      features[i] /= sum;
      features[HeadDim + i] /= negative_sum;
    }
  }

  /// Of a softmax p: Σ_r g_r ∂p_r/∂x_i = p_i (g_i − Σ_r g_r p_r).
  template <class T>
  JRT_DETAIL_HD void expand_vjp(const T* x, const T* features_gradient, T* x_gradient) const {
    T features[feature_dim];
    expand(x, features);
    T mean = 0;
    T negative_mean = 0;
    for (int i = 0; i < HeadDim; ++i) {
      mean += features_gradient[i] * features[i];
      negative_mean += features_gradient[HeadDim + i] * features[HeadDim + i];
    }
    for (int i = 0; i < HeadDim; ++i) {
      x_gradient[i] = features[i] * (features_gradient[i] - mean) -
                      features[HeadDim + i] * (features_gradient[HeadDim + i] - negative_mean);
    }
  }
};

}  // namespace jrt
