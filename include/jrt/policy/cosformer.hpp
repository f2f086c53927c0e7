// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>

#include "jrt/detail/host_device.hpp"
#include "jrt/policy/feature_map.hpp"
#include "jrt/status.hpp"

namespace jrt {

/// φ_i(x) = [relu(x)·sin(πi/2T), relu(x)·cos(πi/2T)], D = 2d, for the token at position i = 1 … T (cosFormer,
/// arXiv 2202.08791), so that φ_i(q)·φ_j(k) = relu(q)·relu(k)·cos(π(i−j)/2T).
///
/// `horizon` is T. It is fixed for the life of a state, decoding included: a position beyond it is an error.
template <int HeadDim>
struct CosFormer {
  static_assert(HeadDim >= 1, "CosFormer<HeadDim>: HeadDim must be at least 1.");
  static constexpr int input_dim = HeadDim;
  static constexpr int feature_dim = 2 * HeadDim;
  static constexpr const char* name = "cosformer";
  static constexpr bool nonnegative_kernel = true;
  static constexpr bool has_closed_form = false;
  static constexpr bool needs_position = true;

  std::int64_t horizon = 0;

  [[nodiscard]] Status check() const {
    return horizon >= 1 ? Status{}
                        : Status::error(StatusCode::invalid_argument,
                                        "argument 'feature_map': CosFormer has horizon = %lld, but must be at least 1.",
                                        static_cast<long long>(horizon));
  }
  [[nodiscard]] JRT_DETAIL_HD std::int64_t max_position() const { return horizon; }

  template <class T>
  JRT_DETAIL_HD void expand(const T* x, T* features, std::int64_t position) const {
    const T angle = static_cast<T>(1.5707963267948966 * static_cast<double>(position) / static_cast<double>(horizon));
    const T sine = std::sin(angle);
    const T cosine = std::cos(angle);
    for (int i = 0; i < HeadDim; ++i) {
      const T positive = x[i] > T(0) ? x[i] : T(0);
      features[i] = positive * sine;
      features[HeadDim + i] = positive * cosine;
    }
  }

  template <class T>
  JRT_DETAIL_HD void expand_vjp(const T* x, const T* features_gradient, T* x_gradient, std::int64_t position) const {
    const T angle = static_cast<T>(1.5707963267948966 * static_cast<double>(position) / static_cast<double>(horizon));
    const T sine = std::sin(angle);
    const T cosine = std::cos(angle);
    for (int i = 0; i < HeadDim; ++i) {
      const T sum = features_gradient[i] * sine + features_gradient[HeadDim + i] * cosine;
      x_gradient[i] = x[i] > T(0) ? sum : T(0);
    }
  }
};

}  // namespace jrt
