// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "jrt/detail/host_device.hpp"
#include "jrt/policy/feature_map.hpp"

/// Feature maps that act on each component by itself (feature_dim = input_dim).
namespace jrt {

namespace detail {

/// Defaults of such a map.
template <int HeadDim>
struct ElementwiseMap {
  static_assert(HeadDim >= 1, "feature map: HeadDim is the feature input dimension d and must be at least 1.");
  static constexpr int input_dim = HeadDim;
  static constexpr int feature_dim = HeadDim;
  static constexpr bool nonnegative_kernel = false;
  static constexpr bool has_closed_form = false;
  static constexpr bool needs_position = false;
};

}  // namespace detail

/// φ(x) = x: plain linear attention. φ(q)·φ(k) may be negative, so use it with `Unnormalised`.
template <int HeadDim>
struct Identity : detail::ElementwiseMap<HeadDim> {
  static constexpr const char* name = "identity";
  static constexpr bool has_closed_form = true;

  template <class T>
  [[nodiscard]] JRT_DETAIL_HD T kernel(T dot) const {
    return dot;
  }

  template <class T>
  JRT_DETAIL_HD void expand(const T* x, T* features) const {
    for (int i = 0; i < HeadDim; ++i) {
      features[i] = x[i];
    }
  }

  template <class T>
  [[nodiscard]] JRT_DETAIL_HD T kernel_derivative(T /*dot*/) const {
    return T(1);
  }

  template <class T>
  JRT_DETAIL_HD void expand_vjp(const T* /*x*/, const T* features_gradient, T* x_gradient) const {
    for (int i = 0; i < HeadDim; ++i) {
      x_gradient[i] = features_gradient[i];
    }
  }
};

/// φ(x) = elu(x) + 1, that is x + 1 for x > 0 and exp(x) otherwise (Katharopoulos et al. 2020, arXiv 2006.16236).
template <int HeadDim>
struct EluPlusOne : detail::ElementwiseMap<HeadDim> {
  static constexpr const char* name = "elu+1";
  static constexpr bool nonnegative_kernel = true;

  template <class T>
  JRT_DETAIL_HD void expand(const T* x, T* features) const {
    for (int i = 0; i < HeadDim; ++i) {
      features[i] = x[i] > T(0) ? x[i] + T(1) : std::exp(x[i]);
    }
  }

  template <class T>
  JRT_DETAIL_HD void expand_vjp(const T* x, const T* features_gradient, T* x_gradient) const {
    for (int i = 0; i < HeadDim; ++i) {
      x_gradient[i] = x[i] > T(0) ? features_gradient[i] : features_gradient[i] * std::exp(x[i]);
    }
  }
};

/// φ(x) = max(x, ε) with ε = 1e-6, which keeps the normaliser above zero.
template <int HeadDim>
struct Relu : detail::ElementwiseMap<HeadDim> {
  static constexpr const char* name = "relu";
  static constexpr bool nonnegative_kernel = true;
  static constexpr double floor = 1e-6;

  template <class T>
  JRT_DETAIL_HD void expand(const T* x, T* features) const {
    for (int i = 0; i < HeadDim; ++i) {
      features[i] = x[i] > static_cast<T>(floor) ? x[i] : static_cast<T>(floor);
    }
  }

  template <class T>
  JRT_DETAIL_HD void expand_vjp(const T* x, const T* features_gradient, T* x_gradient) const {
    for (int i = 0; i < HeadDim; ++i) {
      x_gradient[i] = x[i] > static_cast<T>(floor) ? features_gradient[i] : T(0);
    }
  }
};

/// φ(x) = x², component by component.
template <int HeadDim>
struct Square : detail::ElementwiseMap<HeadDim> {
  static constexpr const char* name = "square";
  static constexpr bool nonnegative_kernel = true;

  template <class T>
  JRT_DETAIL_HD void expand(const T* x, T* features) const {
    for (int i = 0; i < HeadDim; ++i) {
      features[i] = x[i] * x[i];
    }
  }

  template <class T>
  JRT_DETAIL_HD void expand_vjp(const T* x, const T* features_gradient, T* x_gradient) const {
    for (int i = 0; i < HeadDim; ++i) {
      x_gradient[i] = T(2) * x[i] * features_gradient[i];
    }
  }
};

}  // namespace jrt
