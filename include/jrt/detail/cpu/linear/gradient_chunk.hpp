// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/prefetch.hpp"
#include "jrt/detail/cpu/core/tile.hpp"
#include "jrt/detail/cpu/core/transpose.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/detail/cpu/linear/chunk.hpp"
#include "jrt/detail/cpu/linear/expansion_gradient.hpp"
#include "jrt/detail/cpu/linear/query_chunk.hpp"
#include "jrt/detail/cpu/linear/working_state.hpp"
#include "jrt/detail/shared/linear/output_products.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/sequences.hpp"
#include "jrt/tensor_view.hpp"
#include "jrt/workspace.hpp"

/// A chunk of tokens of one head in the backward pass. With v' = [v, 1], S' = [S, z] (of the forward pass, before the
/// chunk) and R (its counterpart, which runs backwards: Σ φ(q) gᵀ over the queries after the chunk),
///
///     dφ(Q) = S' g + Σ_{j<=i} (g_i · v'_j) φ(k_j)          queries: QueryGradients
///     dφ(K) = R v' + Σ_{i>=j} (g_i · v'_j) φ(q_i)          keys: KeyGradients
///     dV    = Rᵀ φ(K) + Σ_{i>=j} w_ij g_i
///
/// where the feature map has a closed form w = kernel(q·k), the sums within the chunk are over
/// ds_ij = (g_i · v'_j) kernel'(q_i·k_j) and give dq += ds k, dk += ds q without features.
///
/// Gradients of features and of inputs have a row for each feature or component and a column for each token.
namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// A chunk's scores and the gradients of its features, with what is added up inside the chunk.
template <AttentionConfig Config>
struct GradientChunk {
  using T = ConfigCompute<Config>;
  using Map = typename Config::FeatureMap;
  using Keys = KeyChunk<Config>;
  using Queries = QueryChunk<Config>;
  using State = typename Keys::State;
  using Expansion = typename Keys::Expansion;
  using Gradient = ExpansionGradient<Map, T>;
  static constexpr std::ptrdiff_t column_stride = Keys::score_stride;

  T* values_by_token = nullptr;    // [value_dim][column_stride]
  T* ones = nullptr;               // [column_stride]
  T* scores = nullptr;             // [chunk_tokens][column_stride]: q·k, then weights
  T* pairs_gradient = nullptr;     // [chunk_tokens][column_stride]: g·v', with a closed form times kernel'
  T* features_gradient = nullptr;  // [feature_dim][column_stride]
  T* inputs_gradient = nullptr;    // [input_dim][column_stride]
  T* values_gradient = nullptr;    // [chunk_tokens][State::stride]
  T* output_products = nullptr;    // [column_stride]: dy·y

  void take(Arena& arena) {
    values_by_token = arena.take<T>(State::columns * column_stride);
    ones = arena.take<T>(column_stride);
    scores = arena.take<T>(chunk_tokens * column_stride);
    pairs_gradient = arena.take<T>(chunk_tokens * column_stride);
    features_gradient = arena.take<T>(State::rows * column_stride);
    inputs_gradient = arena.take<T>(Map::input_dim * column_stride);
    values_gradient = arena.take<T>(std::int64_t{chunk_tokens} * State::stride);
    output_products = arena.take<T>(recomputes_output_products<Config> ? column_stride : 0);
  }

  void clear() const {
    for (std::ptrdiff_t t = 0; t < column_stride; ++t) {
      ones[t] = T(1);
    }
  }

  // -- queries ---------------------------------------------------------------------------------------------------------

  /// Gradients of the chunk's queries into `inputs_gradient`, from the state before the chunk and, unless `keys` is null,
  /// the chunk itself. Where dy·y is formed again, it is here, and the last components of g with it.
  void of_queries(const Queries& queries, const State& state, const Keys* keys, const Map& map, const SequenceSpan& span,
                  std::int64_t first) const {
    const int columns = padded_to_lanes<T>(queries.tokens);
    queries.transpose_rows();
    const Product<T> through_state{Left<T>{state.sums(), State::stride, 1},
                                   Right<T>{queries.gradient_by_token, column_stride}, State::columns};
    if constexpr (recomputes_output_products<Config>) {
      multiply(features_gradient, State::rows, columns, through_state);
      std::memset(output_products, 0, sizeof(T) * column_stride);
    } else {
      multiply_tiles(features_gradient, column_stride, State::rows, columns,
                     {through_state, {Left<T>{state.normaliser(), 1, 1}, last_components(queries), 1}}, false);
    }
    std::memset(inputs_gradient, 0, sizeof(T) * Map::input_dim * column_stride);
    if (keys != nullptr) {
      pairs_of_queries(queries, *keys, map);
      if constexpr (!Map::has_closed_form) {
        add_pairs_of_queries(*keys, columns);
      }
    }
    if constexpr (recomputes_output_products<Config>) {
      queries.expand(map, span, first);
      recompute_denominator_gradients(queries);
      add_product(features_gradient, State::rows, columns,
                  {Left<T>{state.normaliser(), 1, 1}, last_components(queries), 1});
      if (keys != nullptr) {
        finish_pairs_of_queries(queries, *keys, map);
        if constexpr (!Map::has_closed_form) {
          add_pairs_of_queries(*keys, columns);
        }
      }
    }
    if constexpr (Map::has_closed_form) {
      if (keys != nullptr) {
        multiply(
            inputs_gradient, Map::input_dim, columns,
            {Left<T>{keys->inputs, 1, Expansion::input_stride}, Right<T>{pairs_gradient, column_stride}, keys->tokens});
      }
    }
    Gradient::add_query(map,
                        {queries.inputs, Expansion::input_stride, queries.inputs_by_token, features_gradient, column_stride,
                         queries.tokens, first},
                        span, inputs_gradient);
  }

  // -- keys and values -------------------------------------------------------------------------------------------------

  /// Gradients of the chunk's keys and values from the queries after it. Prefetches the lines of `next` meanwhile.
  void begin_keys(const Keys& keys, const State& reverse, bool wants_keys, bool wants_values, LinePrefetch next) const {
    const int columns = padded_to_lanes<T>(keys.tokens);
    if (wants_keys) {
      transpose(keys.values, State::stride, keys.tokens, State::columns, values_by_token, column_stride);
      multiply_tiles(features_gradient, column_stride, State::rows, columns,
                     {{Left<T>{reverse.sums(), State::stride, 1}, Right<T>{values_by_token, column_stride}, State::columns},
                      {Left<T>{reverse.normaliser(), 1, 1}, Right<T>{ones, column_stride}, 1}},
                     false, &next);
      std::memset(inputs_gradient, 0, sizeof(T) * Map::input_dim * column_stride);
    }
    if (wants_values) {
      multiply_tiles(
          values_gradient, State::stride, keys.tokens, State::stride,
          Product<T>{Left<T>{keys.features, Keys::feature_stride, 1}, Right<T>{reverse.sums(), State::stride}, State::rows},
          false);
    }
  }

  /// Adds what the chunk's own queries, of one query head, contribute.
  void add_queries(const Queries& queries, const Keys& keys, const Map& map, bool wants_keys, bool wants_values) const {
    const int columns = padded_to_lanes<T>(keys.tokens);
    pairs_of_keys(queries, keys, map, wants_keys);
    if (wants_values) {
      add_weighted_gradients(queries, keys.tokens);
    }
    if (wants_keys) {
      if constexpr (Map::has_closed_form) {
        add_product(
            inputs_gradient, Map::input_dim, columns,
            {Left<T>{queries.inputs, 1, Expansion::input_stride}, Right<T>{pairs_gradient, column_stride}, queries.tokens});
      } else {
        add_product(
            features_gradient, State::rows, columns,
            {Left<T>{queries.features, 1, Keys::feature_stride}, Right<T>{pairs_gradient, column_stride}, queries.tokens});
      }
    }
  }

  /// Completes the gradients of keys in `inputs_gradient`.
  void finish_keys(const Keys& keys, const Map& map, const SequenceSpan& span, std::int64_t first) const {
    const T* by_token = keys.transposed;  // with a closed form, the inputs
    Gradient::add_key(
        map, {keys.inputs, Expansion::input_stride, by_token, features_gradient, column_stride, keys.tokens, first}, span,
        inputs_gradient);
  }

 private:
  static void multiply(T* result, int rows, int columns, const Product<T>& product) {
    multiply_tiles(result, column_stride, rows, columns, product, false);
  }
  static void add_product(T* result, int rows, int columns, const Product<T>& product) {
    multiply_tiles(result, column_stride, rows, columns, product, true);
  }

  static Right<T> last_components(const Queries& queries) { return {queries.denominator_gradient, column_stride}; }

  /// features_gradient += Σ_j pairs_gradient[j] φ(k_j).
  void add_pairs_of_queries(const Keys& keys, int columns) const {
    add_product(features_gradient, State::rows, columns,
                {Left<T>{keys.features, 1, Keys::feature_stride}, Right<T>{pairs_gradient, column_stride}, keys.tokens});
  }

  /// Adds φ(q)·features_gradient to the products, and makes the last components of g of them.
  void recompute_denominator_gradients(const Queries& queries) const {
    for (int r = 0; r < State::rows; ++r) {
      const T* const of_feature = features_gradient + r * column_stride;
      for (int t = 0; t < queries.tokens; ++t) {
        output_products[t] += queries.features[std::ptrdiff_t{t} * Keys::feature_stride + r] * of_feature[t];
      }
    }
    for (int t = 0; t < queries.tokens; ++t) {
      queries.denominator_gradient[t] = queries.denominator_factor[t] * output_products[t];
    }
  }

  /// Replaces the pairs by what the last components of g add to them: all of it with a closed form, that alone without.
  void finish_pairs_of_queries(const Queries& queries, const Keys& keys, [[maybe_unused]] const Map& map) const {
    const int columns = padded_to_lanes<T>(queries.tokens);
    for (int j = 0; j < keys.tokens; ++j) {
      T* const of_key = pairs_gradient + j * column_stride;
      for (int i = j; i < columns; ++i) {
        if constexpr (Map::has_closed_form) {
          of_key[i] = (of_key[i] + queries.denominator_gradient[i]) * map.kernel_derivative(scores[j * column_stride + i]);
        } else {
          of_key[i] = queries.denominator_gradient[i];
        }
      }
    }
  }

  /// values_gradient[j] += Σ_{i>=j} w_ij g_i.
  void add_weighted_gradients(const Queries& queries, int tokens) const {
    for (int row = 0; row < tokens; row += tile_rows) {
      multiply_tiles(
          values_gradient + std::ptrdiff_t{row} * State::stride, State::stride, smaller(tile_rows, tokens - row),
          State::stride,
          Product<T>{Left<T>{scores + row * column_stride + row, 1, column_stride},
                     Right<T>{queries.gradient + std::ptrdiff_t{row} * State::stride, State::stride}, tokens - row},
          true);
    }
  }

  /// pairs_gradient[j][i] for keys j and queries i; 0 for i < j. Where dy·y is formed again, without the last components of
  /// g and the kernel's derivative: `finish_pairs_of_queries` brings them.
  void pairs_of_queries(const Queries& queries, const Keys& keys, [[maybe_unused]] const Map& map) const {
    const int columns = padded_to_lanes<T>(queries.tokens);
    for (int row = 0; row < keys.tokens; row += tile_rows) {
      const int rows = smaller(tile_rows, keys.tokens - row);
      const int unseen = row / lanes<T> * lanes<T>;  // columns before it are 0
      T* const gradient = pairs_gradient + row * column_stride;
      T* const score = scores + row * column_stride;
      multiply(gradient + unseen, rows, columns - unseen,
               Product<T>{Left<T>{keys.values + std::ptrdiff_t{row} * State::stride, State::stride, 1},
                          Right<T>{queries.gradient_by_token + unseen, column_stride}, State::columns});
      if constexpr (Map::has_closed_form) {
        multiply(
            score + unseen, rows, columns - unseen,
            Product<T>{Left<T>{keys.inputs + std::ptrdiff_t{row} * Expansion::input_stride, Expansion::input_stride, 1},
                       Right<T>{queries.inputs_by_token + unseen, column_stride}, Map::input_dim});
      }
      for (int r = 0; r < rows; ++r) {
        T* const of_key = gradient + r * column_stride;
        std::memset(of_key, 0, sizeof(T) * static_cast<std::size_t>(unseen));
        for (int i = unseen; i < columns; ++i) {
          T pair = of_key[i] + queries.denominator_gradient[i];
          if constexpr (Map::has_closed_form && !recomputes_output_products<Config>) {
            pair *= map.kernel_derivative(score[r * column_stride + i]);
          }
          of_key[i] = i >= row + r ? pair : T(0);
          if constexpr (Map::has_closed_form && recomputes_output_products<Config>) {
            output_products[i] += of_key[i] * map.kernel(score[r * column_stride + i]);
          }
        }
      }
    }
  }

  /// For queries i and keys j: weights in scores[i][j] and pairs_gradient[i][j]; 0 for j > i.
  void pairs_of_keys(const Queries& queries, const Keys& keys, [[maybe_unused]] const Map& map, bool wants_keys) const {
    const int all_columns = padded_to_lanes<T>(keys.tokens);
    const T* const left = Map::has_closed_form ? queries.inputs : queries.features;
    constexpr std::ptrdiff_t left_stride = Map::has_closed_form ? Expansion::input_stride : Keys::feature_stride;
    for (int row = 0; row < queries.tokens; row += tile_rows) {
      const int rows = smaller(tile_rows, queries.tokens - row);
      const int columns = smaller(all_columns, padded_to_lanes<T>(row + rows));
      T* const gradient = pairs_gradient + row * column_stride;
      T* const weight = scores + row * column_stride;
      multiply(
          weight, rows, columns,
          {Left<T>{left + row * left_stride, left_stride, 1}, Right<T>{keys.transposed, column_stride}, Keys::score_depth});
      if (wants_keys) {
        multiply(gradient, rows, columns,
                 Product<T>{Left<T>{queries.gradient + std::ptrdiff_t{row} * State::stride, State::stride, 1},
                            Right<T>{values_by_token, column_stride}, State::columns});
      }
      for (int r = 0; r < rows; ++r) {
        const int seen = row + r;
        const T last = queries.denominator_gradient[seen];
        T* const weight_row = weight + r * column_stride;
        T* const gradient_row = gradient + r * column_stride;
        for (int j = 0; j < columns; ++j) {
          T of_pair = weight_row[j];
          T pair = gradient_row[j] + last;
          if constexpr (Map::has_closed_form) {
            pair *= map.kernel_derivative(of_pair);
            of_pair = map.kernel(of_pair);
          }
          weight_row[j] = j <= seen ? of_pair : T(0);
          gradient_row[j] = j <= seen ? pair : T(0);
        }
        std::memset(weight_row + columns, 0, sizeof(T) * static_cast<std::size_t>(all_columns - columns));
        std::memset(gradient_row + columns, 0, sizeof(T) * static_cast<std::size_t>(all_columns - columns));
      }
    }
  }
};

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
