// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>

#include "jrt/detail/host_device.hpp"
#include "jrt/status.hpp"

namespace jrt {

namespace detail {

// The signatures that the expansion of one vector may have: with or without the position, one function for queries and keys
// or one for each.
template <class M, class T>
concept ExpandsPlain = requires(const M& map, const T* x, T* features) {
  map.expand(x, features);
};
template <class M, class T>
concept ExpandsAtPosition = requires(const M& map, const T* x, T* features, std::int64_t position) {
  map.expand(x, features, position);
};
template <class M, class T>
concept ExpandsQueryAndKey = requires(const M& map, const T* x, T* features) {
  map.expand_query(x, features);
  map.expand_key(x, features);
};

template <class M, class T>
concept ExpandsQueryAndKeyAtPosition = requires(const M& map, const T* x, T* features, std::int64_t position) {
  map.expand_query(x, features, position);
  map.expand_key(x, features, position);
};

// The vector-Jacobian products of the same: x_gradient = J(x)ᵀ features_gradient.
template <class M, class T>
concept HasVjpPlain = requires(const M& map, const T* x, T* x_gradient) {
  map.expand_vjp(x, x, x_gradient);
};
template <class M, class T>
concept HasVjpAtPosition = requires(const M& map, const T* x, T* x_gradient, std::int64_t position) {
  map.expand_vjp(x, x, x_gradient, position);
};
template <class M, class T>
concept HasVjpQueryAndKey = requires(const M& map, const T* x, T* x_gradient) {
  map.expand_query_vjp(x, x, x_gradient);
  map.expand_key_vjp(x, x, x_gradient);
};
template <class M, class T>
concept HasVjpQueryAndKeyAtPosition = requires(const M& map, const T* x, T* x_gradient, std::int64_t position) {
  map.expand_query_vjp(x, x, x_gradient, position);
  map.expand_key_vjp(x, x, x_gradient, position);
};
template <class M, class T>
concept HasVjp = (M::needs_position ? HasVjpAtPosition<M, T> || HasVjpQueryAndKeyAtPosition<M, T>
                                    : HasVjpPlain<M, T> || HasVjpQueryAndKey<M, T>);

/// Whether the functions that `needs_position` requires exist.
template <class M, class T>
concept Expands = (M::needs_position ? ExpandsAtPosition<M, T> || ExpandsQueryAndKeyAtPosition<M, T>
                                     : ExpandsPlain<M, T> || ExpandsQueryAndKey<M, T>);

}  // namespace detail

/// Policy: the feature map φ: R^d → R^D of linear attention, whose similarity is φ(q)·φ(k).
///
/// Requires:   a trivially copyable struct with
///             - `static constexpr int input_dim` (d), `static constexpr int feature_dim` (D);
///             - `static constexpr const char* name`: identifies the map, and the order of its rows, in saved states;
///             - `static constexpr bool nonnegative_kernel`: φ(q)·φ(k) >= 0 for all q, k;
///             - `static constexpr bool has_closed_form`: if true also `T kernel(T dot) const`, φ(q)·φ(k) from the plain
///               inner product q·k, with which no expansion is needed inside a chunk;
///             - `static constexpr bool needs_position`; not together with a closed form;
///             - `void expand(const T* x, T* features) const` for float and double, templated or overloaded, callable on
///               host and (for the CUDA backend) device; with `needs_position` it takes a third argument, the position
///               counted from 1. A map may instead offer `expand_query` and `expand_key`, if they differ.
///             Optional: `Status check() const` for maps with run-time data, `std::int64_t max_position() const`. For
///             `backward`: `void expand_vjp(const T* x, const T* features_gradient, T* x_gradient) const` (again with the
///             position, or one each for queries and keys, `expand_query_vjp` and `expand_key_vjp`) and, with a closed
///             form, `T kernel_derivative(T dot) const`; see `DifferentiableFeatureMap`.
/// Guarantees: `expand` gets input_dim inputs and room for feature_dim outputs that do not overlap; it is called from
///             several threads at once. A new map needs no change to the library.
/// Cost:       memory and time are proportional to feature_dim.
/// Default:    `Taylor2`.
/// Tested by:  tests/policy/feature_map_test.cpp, and tests/policy/foreign_feature_map_test.cpp for a user's own.
template <class M>
concept FeatureMap = std::is_trivially_copyable_v<M> && requires {
  { M::input_dim } -> std::convertible_to<int>;
  { M::feature_dim } -> std::convertible_to<int>;
  { M::name } -> std::convertible_to<const char*>;
  { M::nonnegative_kernel } -> std::convertible_to<bool>;
  { M::has_closed_form } -> std::convertible_to<bool>;
  { M::needs_position } -> std::convertible_to<bool>;
} && detail::Expands<M, float> && detail::Expands<M, double>;

/// A feature map that `backward` can differentiate. Its vector-Jacobian product is
///
///     x_gradient_i = Σ_r features_gradient_r ∂φ_r(x)/∂x_i,    i = 0 … input_dim − 1,
///
/// which is written, not added; and `kernel_derivative(q·k)` is the derivative of `kernel`. Run-time data of the map gets
/// no gradient. Where φ is not differentiable (max, relu) the derivative from the left counts.
template <class M>
concept DifferentiableFeatureMap = FeatureMap<M> && detail::HasVjp<M, float> && detail::HasVjp<M, double> &&
    (!M::has_closed_form || requires(const M& map, float single, double twice) {
      { map.kernel_derivative(single) } -> std::same_as<float>;
      { map.kernel_derivative(twice) } -> std::same_as<double>;
    });

/// Features of a query: `map.feature_dim` values from `map.input_dim`. `position` counts from 1.
template <class Map, class T>
JRT_DETAIL_HD void expand_query(const Map& map, const T* x, T* features, [[maybe_unused]] std::int64_t position) {
  if constexpr (Map::needs_position) {
    if constexpr (detail::ExpandsQueryAndKeyAtPosition<Map, T>) {
      map.expand_query(x, features, position);
    } else {
      map.expand(x, features, position);
    }
  } else if constexpr (detail::ExpandsQueryAndKey<Map, T>) {
    map.expand_query(x, features);
  } else {
    map.expand(x, features);
  }
}

/// Features of a key: `map.feature_dim` values from `map.input_dim`. `position` counts from 1.
template <class Map, class T>
JRT_DETAIL_HD void expand_key(const Map& map, const T* x, T* features, [[maybe_unused]] std::int64_t position) {
  if constexpr (Map::needs_position) {
    if constexpr (detail::ExpandsQueryAndKeyAtPosition<Map, T>) {
      map.expand_key(x, features, position);
    } else {
      map.expand(x, features, position);
    }
  } else if constexpr (detail::ExpandsQueryAndKey<Map, T>) {
    map.expand_key(x, features);
  } else {
    map.expand(x, features);
  }
}

/// Gradient of a query from that of its features: x_gradient = J(x)ᵀ features_gradient.
template <class Map, class T>
JRT_DETAIL_HD void expand_query_vjp(const Map& map, const T* x, const T* features_gradient, T* x_gradient,
                                    [[maybe_unused]] std::int64_t position) {
  if constexpr (Map::needs_position) {
    if constexpr (detail::HasVjpQueryAndKeyAtPosition<Map, T>) {
      map.expand_query_vjp(x, features_gradient, x_gradient, position);
    } else {
      map.expand_vjp(x, features_gradient, x_gradient, position);
    }
  } else if constexpr (detail::HasVjpQueryAndKey<Map, T>) {
    map.expand_query_vjp(x, features_gradient, x_gradient);
  } else {
    map.expand_vjp(x, features_gradient, x_gradient);
  }
}

/// Gradient of a key from that of its features.
template <class Map, class T>
JRT_DETAIL_HD void expand_key_vjp(const Map& map, const T* x, const T* features_gradient, T* x_gradient,
                                  [[maybe_unused]] std::int64_t position) {
  if constexpr (Map::needs_position) {
    if constexpr (detail::HasVjpQueryAndKeyAtPosition<Map, T>) {
      map.expand_key_vjp(x, features_gradient, x_gradient, position);
    } else {
      map.expand_vjp(x, features_gradient, x_gradient, position);
    }
  } else if constexpr (detail::HasVjpQueryAndKey<Map, T>) {
    map.expand_key_vjp(x, features_gradient, x_gradient);
  } else {
    map.expand_vjp(x, features_gradient, x_gradient);
  }
}

}  // namespace jrt
