// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/rows.hpp"
#include "jrt/detail/cpu/core/simd.hpp"
#include "jrt/policy/feature_map.hpp"
#include "jrt/policy/taylor.hpp"

/// Features of many rows at once. Rows are first converted into a buffer (`write_input`), then expanded from it.
namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// Any feature map: row by row.
template <class Map, class T>
struct RowExpansion {
  static constexpr int input_stride = Map::input_dim;
  static constexpr int feature_overrun = 0;

  template <class Element>
  static void write_input(const Element* x, T* input) {
    convert_row(x, input, Map::input_dim);
  }
  static void expand_key(const Map& map, const T* input, T* features, std::int64_t position) {
    jrt::expand_key(map, input, features, position);
  }
  static void expand_query(const Map& map, const T* input, T* features, std::int64_t position) {
    jrt::expand_query(map, input, features, position);
  }
  /// The closed form of φ(q)·φ(k) for a packet of q·k.
  static Packet<T> kernel(const Map& map, const Packet<T>& dots) {
    T numbers[lanes<T>];
    store(numbers, dots);
    for (T& number : numbers) {
      number = map.kernel(number);
    }
    return load(numbers);
  }
};

/// The symmetric Taylor map in packets. An input stands twice in its row, which makes every rotation of it a contiguous
/// read. Where d is no multiple of the lanes, a block's last packet runs into the next block, which is written after it;
/// rows of features are therefore expanded in order, and the last one needs `feature_overrun` numbers of room behind it.
template <int d, class T>
struct RowExpansion<Taylor2<d, SymmetricPacking>, T> {
  using Map = Taylor2<d, SymmetricPacking>;
  static constexpr int block_packets = ceil_div(d, lanes<T>);
  /// Numbers written behind the padded features of a row.
  static constexpr int feature_overrun =
      larger(0, (d / 2 + 1) * d + block_packets * lanes<T> - padded_to_lanes<T>(Map::feature_dim));
  static constexpr int input_stride = larger(2 * d, padded_to_lanes<T>(d / 2 + block_packets * lanes<T>));

  template <class Element>
  static void write_input(const Element* x, T* input) {
    convert_row(x, input, d);
    convert_row(x, input + d, d);
  }
  static void expand_key(const Map& /*map*/, const T* input, T* features, std::int64_t /*position*/) {
    expand(input, features, T(1));
  }
  static void expand_query(const Map& /*map*/, const T* input, T* features, std::int64_t /*position*/) {
    expand(input, features, T(2));
  }
  static Packet<T> kernel(const Map& /*map*/, const Packet<T>& dots) {
    const Packet<T> s = multiply(dots, broadcast(static_cast<T>(Map::inverse_sqrt_dim)));
    const Packet<T> one = broadcast(T(1));
    return multiply_add(multiply_add(s, broadcast(T(0.5)), one), s, one);
  }

 private:
  /// A product of two different components is weighted with `pair_weight`, see Taylor2.
  static void expand(const T* input, T* features, T pair_weight) {
    Packet<T> scaled[block_packets];
#pragma GCC unroll 8
    for (int p = 0; p < block_packets; ++p) {
      const Packet<T> x = load(input + p * lanes<T>);
      scaled[p] = multiply(x, broadcast(static_cast<T>(Map::product_scale)));
      store(features + p * lanes<T>, multiply(x, broadcast(static_cast<T>(Map::linear_scale))));
    }
#pragma GCC unroll 8
    for (int p = 0; p < block_packets; ++p) {
      store(features + d + p * lanes<T>, multiply(scaled[p], load(input + p * lanes<T>)));
      scaled[p] = multiply(scaled[p], broadcast(pair_weight));
    }
    // Block d/2 is written whole, too; only its first half counts.
    for (int s = 1; s <= d / 2; ++s) {
#pragma GCC unroll 8
      for (int p = 0; p < block_packets; ++p) {
        store(features + (s + 1) * d + p * lanes<T>, multiply(scaled[p], load(input + s + p * lanes<T>)));
      }
    }
    features[Map::feature_dim - 1] = T(1);
    for (int r = Map::feature_dim; r < padded_to_lanes<T>(Map::feature_dim); ++r) {
      features[r] = T(0);
    }
  }
};

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
