// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>

#include "jrt/detail/host_device.hpp"
#include "jrt/policy/feature_map.hpp"

/// The second-order Taylor feature map of Based and JRT-RNN, in two row orders.
namespace jrt {

namespace detail {

// Newton's iteration, since std::sqrt is not constexpr in C++20.
constexpr double square_root(double value) {
  double root = value > 1 ? value : 1;
  for (int i = 0; i < 64; ++i) {
    root = (root + value / root) / 2;
  }
  return root;
}

}  // namespace detail

/// Contents of a row of a Taylor state: the constant (both indices -1), the linear feature of input `first`
/// (`second` = -1), or the product of inputs `first` and `second`.
struct TaylorRow {
  int first = -1;
  int second = -1;

  friend constexpr bool operator==(const TaylorRow&, const TaylorRow&) = default;
};

/// Policy: in which order, and how often, the rows of the Taylor map are stored.
///
/// Requires:   `rows<d>`, the number of rows; `row<d>(r)`, what row r holds, each product x_i x_j at least once;
///             `stores_pairs_twice`, whether x_i x_j and x_j x_i (i != j) are two rows; `name`.
/// Guarantees: rows hold what the dense order holds (no rescaling), so conversion copies values and is bitwise exact.
/// Cost:       see the two packings.
/// Default:    `SymmetricPacking`.
/// Tested by:  tests/policy/taylor_test.cpp
template <class P>
concept StatePacking = requires {
  { P::template rows<16> } -> std::convertible_to<int>;
  { P::template row<16>(0) } -> std::same_as<TaylorRow>;
  { P::stores_pairs_twice } -> std::convertible_to<bool>;
};

/// The authors' order: `1 | x | vec(x xᵀ)`, row-major, 1 + d + d² rows (273 at d = 16). For exchange with other code.
struct DensePacking {
  static constexpr bool stores_pairs_twice = true;
  static constexpr const char* name = "taylor2/dense";

  template <int d>
  static constexpr int rows = 1 + d + d* d;

  template <int d>
  JRT_DETAIL_HD static constexpr TaylorRow row(int r) {
    if (r == 0) {
      return {};
    }
    if (r <= d) {
      return {r - 1, -1};
    }
    return {(r - 1 - d) / d, (r - 1 - d) % d};
  }
};

/// Each product once: 1 + d + d(d+1)/2 rows (153 at d = 16). In cyclic order: `x | block 0 | … | block d/2 | 1`, where
/// block s holds x_i · x_((i+s) mod d) for i = 0 … d−1. Every block is one vector times a rotation of itself, which suits
/// vector and matrix units. In block d/2 (d even) each pair would appear twice, so only its first half is stored.
struct SymmetricPacking {
  static constexpr bool stores_pairs_twice = false;
  static constexpr const char* name = "taylor2/symmetric";

  template <int d>
  static constexpr int rows = 1 + d + d*(d + 1) / 2;

  template <int d>
  JRT_DETAIL_HD static constexpr TaylorRow row(int r) {
    if (r == rows<d> - 1) {
      return {};
    }
    if (r < d) {
      return {r, -1};
    }
    const int block = (r - d) / d;
    const int i = (r - d) % d;
    return {i, (i + block) % d};
  }

  /// The row that holds x_i x_j.
  template <int d>
  JRT_DETAIL_HD static constexpr int pair_row(int i, int j) {
    const int forward = j >= i ? j - i : j - i + d;  // block in which i comes first
    const bool first = 2 * forward < d || (2 * forward == d && 2 * i < d);
    return first ? d + forward * d + i : d + (d - forward) * d + j;
  }
};

/// φ(x) = [1, x/d^(1/4), vec(x xᵀ)/√(2d)] in some order of its rows (`Packing`), so that φ(q)·φ(k) = 1 + s + s²/2 with s =
/// q·k/√d: the Taylor polynomial of exp(s), always >= 1/2, so the denominator never vanishes (arXiv 2402.18668, section 4;
/// arXiv 2407.05483).
///
/// Keys are expanded exactly as the formula says, with one row for each stored product; where a packing stores a pair once,
/// the query's feature counts it twice. The state is therefore the dense one with its duplicate rows left out.
///
/// For another scale than 1/√d, scale the queries.
template <int HeadDim, StatePacking Packing = SymmetricPacking>
struct Taylor2 {
  static_assert(HeadDim >= 1, "Taylor2<HeadDim>: HeadDim is the feature input dimension d and must be at least 1.");

  using RowPacking = Packing;
  static constexpr int input_dim = HeadDim;
  static constexpr int feature_dim = Packing::template rows<HeadDim>;
  static constexpr const char* name = Packing::name;
  static constexpr bool nonnegative_kernel = true;
  static constexpr bool has_closed_form = true;
  static constexpr bool needs_position = false;

  /// Factors of q·k, of the linear features and of the products.
  static constexpr double inverse_sqrt_dim = 1 / detail::square_root(HeadDim);
  static constexpr double linear_scale = 1 / detail::square_root(detail::square_root(HeadDim));
  static constexpr double product_scale = 1 / detail::square_root(2.0 * HeadDim);

  /// 1 + s + s²/2, s = dot/√d.
  template <class T>
  [[nodiscard]] JRT_DETAIL_HD T kernel(T dot) const {
    const T s = dot * static_cast<T>(inverse_sqrt_dim);
    return (s * T(0.5) + T(1)) * s + T(1);
  }

  /// Derivative of `kernel`: (1 + s)/√d.
  template <class T>
  [[nodiscard]] JRT_DETAIL_HD T kernel_derivative(T dot) const {
    const T scale = static_cast<T>(inverse_sqrt_dim);
    return (dot * scale + T(1)) * scale;
  }

  template <class T>
  JRT_DETAIL_HD void expand_query(const T* x, T* features) const {
    for (int r = 0; r < feature_dim; ++r) {
      features[r] = query_feature(x, r);
    }
  }

  template <class T>
  JRT_DETAIL_HD void expand_key(const T* x, T* features) const {
    for (int r = 0; r < feature_dim; ++r) {
      features[r] = key_feature(x, r);
    }
  }

  template <class T>
  JRT_DETAIL_HD void expand_query_vjp(const T* x, const T* features_gradient, T* x_gradient) const {
    vjp(x, features_gradient, x_gradient, T(Packing::stores_pairs_twice ? 1 : 2));
  }

  template <class T>
  JRT_DETAIL_HD void expand_key_vjp(const T* x, const T* features_gradient, T* x_gradient) const {
    vjp(x, features_gradient, x_gradient, T(1));
  }

  /// Feature r of a query alone: features are independent.
  template <class T>
  JRT_DETAIL_HD static T query_feature(const T* x, int r) {
    return feature(x, r, T(Packing::stores_pairs_twice ? 1 : 2));
  }
  /// Feature r of a key alone.
  template <class T>
  JRT_DETAIL_HD static T key_feature(const T* x, int r) {
    return feature(x, r, T(1));
  }

 private:
  template <class T>
  JRT_DETAIL_HD static T feature(const T* x, int r, T pair_weight) {
    const TaylorRow row = Packing::template row<HeadDim>(r);
    if (row.first < 0) {
      return T(1);
    }
    if (row.second < 0) {
      return x[row.first] * static_cast<T>(linear_scale);
    }
    const T weight = row.first == row.second ? T(1) : pair_weight;
    return x[row.first] * static_cast<T>(product_scale) * weight * x[row.second];
  }

  template <class T>
  JRT_DETAIL_HD static void vjp(const T* x, const T* features_gradient, T* x_gradient, T pair_weight) {
    for (int i = 0; i < HeadDim; ++i) {
      x_gradient[i] = T(0);
    }
    for (int r = 0; r < feature_dim; ++r) {
      const TaylorRow row = Packing::template row<HeadDim>(r);
      if (row.first < 0) {
        continue;
      }
      if (row.second < 0) {
        x_gradient[row.first] += features_gradient[r] * static_cast<T>(linear_scale);
      } else {
        const T weight = row.first == row.second ? T(1) : pair_weight;
        const T scaled = features_gradient[r] * static_cast<T>(product_scale) * weight;
        x_gradient[row.first] += scaled * x[row.second];
        x_gradient[row.second] += scaled * x[row.first];
      }
    }
  }
};

namespace detail {

template <class M>
inline constexpr bool is_taylor2 = false;
template <int d, class P>
inline constexpr bool is_taylor2<Taylor2<d, P>> = true;

}  // namespace detail

}  // namespace jrt
