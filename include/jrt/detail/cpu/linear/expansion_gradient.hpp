// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/simd.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/policy/feature_map.hpp"
#include "jrt/policy/taylor.hpp"
#include "jrt/sequences.hpp"

/// From the gradient of features to that of the inputs, for a chunk of tokens at once. Here a matrix has a row for each
/// feature or component and a column for each token, so that a packet is as many tokens, whatever the feature map.
namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// The tokens of a chunk whose inputs get gradients.
template <class T>
struct ExpandedTokens {
  const T* inputs = nullptr;             // [tokens][input_stride]
  std::ptrdiff_t input_stride = 0;       //
  const T* inputs_by_token = nullptr;    // [input_dim][column_stride], the same transposed
  const T* features_gradient = nullptr;  // [feature_dim][column_stride]
  std::ptrdiff_t column_stride = 0;      // a multiple of the lanes
  int tokens = 0;
  std::int64_t first = 0;  // token of the sequence in column 0
};

/// Any feature map: token by token.
template <class Map, class T>
struct ExpansionGradient {
  /// inputs_gradient (input_dim x column_stride) += J(x)ᵀ features_gradient, column by column.
  static void add_query(const Map& map, const ExpandedTokens<T>& chunk, const SequenceSpan& span, T* inputs_gradient) {
    add(chunk, span, inputs_gradient,
        [&](const T* x, const T* from, T* to, std::int64_t position) { expand_query_vjp(map, x, from, to, position); });
  }
  static void add_key(const Map& map, const ExpandedTokens<T>& chunk, const SequenceSpan& span, T* inputs_gradient) {
    add(chunk, span, inputs_gradient,
        [&](const T* x, const T* from, T* to, std::int64_t position) { expand_key_vjp(map, x, from, to, position); });
  }

 private:
  template <class Vjp>
  static void add(const ExpandedTokens<T>& chunk, const SequenceSpan& span, T* inputs_gradient, const Vjp& vjp) {
    T column[Map::feature_dim];
    T gradient[Map::input_dim];
    for (int t = 0; t < chunk.tokens; ++t) {
      for (int r = 0; r < Map::feature_dim; ++r) {
        column[r] = chunk.features_gradient[r * chunk.column_stride + t];
      }
      vjp(chunk.inputs + t * chunk.input_stride, column, gradient, span.position(chunk.first + t));
      for (int i = 0; i < Map::input_dim; ++i) {
        inputs_gradient[i * chunk.column_stride + t] += gradient[i];
      }
    }
  }
};

/// The symmetric Taylor map: with G the gradient of the products, dx_a = Σ_b G_ab x_b and dx_b = Σ_a G_ab x_a.
template <int d, class T>
struct ExpansionGradient<Taylor2<d, SymmetricPacking>, T> {
  using Map = Taylor2<d, SymmetricPacking>;

  static void add_query(const Map& /*map*/, const ExpandedTokens<T>& chunk, const SequenceSpan& /*span*/,
                        T* inputs_gradient) {
    add(chunk, inputs_gradient, T(2));
  }
  static void add_key(const Map& /*map*/, const ExpandedTokens<T>& chunk, const SequenceSpan& /*span*/,
                      T* inputs_gradient) {
    add(chunk, inputs_gradient, T(1));
  }

 private:
  static void add(const ExpandedTokens<T>& chunk, T* inputs_gradient, T pair_weight) {
    const std::ptrdiff_t stride = chunk.column_stride;
    const Packet<T> linear_scale = broadcast(static_cast<T>(Map::linear_scale));
    const Packet<T> square_scale = broadcast(static_cast<T>(2 * Map::product_scale));
    const Packet<T> pair_scale = broadcast(static_cast<T>(Map::product_scale) * pair_weight);
    for (int column = 0; column < chunk.tokens; column += lanes<T>) {
      const T* const gradient = chunk.features_gradient + column;
      Packet<T> x[d];
      Packet<T> dx[d];
      for (int i = 0; i < d; ++i) {
        x[i] = load(chunk.inputs_by_token + i * stride + column);
        dx[i] = multiply_add(linear_scale, load(gradient + i * stride), load(inputs_gradient + i * stride + column));
        dx[i] = multiply_add(multiply(square_scale, x[i]), load(gradient + (d + i) * stride), dx[i]);
      }
      for (int r = 2 * d; r < Map::feature_dim - 1; ++r) {
        const TaylorRow row = SymmetricPacking::template row<d>(r);
        const Packet<T> scaled = multiply(pair_scale, load(gradient + r * stride));
        dx[row.first] = multiply_add(scaled, x[row.second], dx[row.first]);
        dx[row.second] = multiply_add(scaled, x[row.first], dx[row.second]);
      }
      for (int i = 0; i < d; ++i) {
        store(inputs_gradient + i * stride + column, dx[i]);
      }
    }
  }
};

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
