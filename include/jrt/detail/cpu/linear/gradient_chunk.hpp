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
#include "jrt/detail/cpu/linear/working_state.hpp"
#include "jrt/detail/plan/token_range.hpp"
#include "jrt/detail/shared/linear/denominators.hpp"
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

/// The queries of a chunk with the gradients of their outputs: g_i = [f(n_i) dy_i, f'(n_i)/f(n_i) (dy_i · y_i)].
template <AttentionConfig Config>
struct QueryChunk {
  using T = ConfigCompute<Config>;
  using Map = typename Config::FeatureMap;
  using Keys = KeyChunk<Config>;
  using State = typename Keys::State;
  using Expansion = typename Keys::Expansion;
  static constexpr std::ptrdiff_t column_stride = Keys::score_stride;

  T* inputs = nullptr;                // [chunk_tokens][Expansion::input_stride]
  T* inputs_by_token = nullptr;       // [input_dim][column_stride]
  T* features = nullptr;              // [chunk_tokens][feature_stride], padding 0
  T* gradient = nullptr;              // [chunk_tokens][State::stride], padding 0: g without its last component
  T* gradient_by_token = nullptr;     // [value_dim][column_stride]
  T* denominator_gradient = nullptr;  // [column_stride], the last component of g
  T* output = nullptr;                // [State::stride], padding 0
  int tokens = 0;

  void take(Arena& arena) {
    inputs = arena.take<T>(std::int64_t{chunk_tokens} * Expansion::input_stride);
    inputs_by_token = arena.take<T>(Map::input_dim * column_stride);
    features = arena.take<T>(std::int64_t{chunk_tokens} * Keys::feature_stride + Expansion::feature_overrun);
    gradient = arena.take<T>(std::int64_t{chunk_tokens} * State::stride);
    gradient_by_token = arena.take<T>(State::columns * column_stride);
    denominator_gradient = arena.take<T>(column_stride);
    output = arena.take<T>(State::stride);
  }

  void clear() const {
    std::memset(features, 0, sizeof(T) * chunk_tokens * Keys::feature_stride);
    std::memset(gradient, 0, sizeof(T) * chunk_tokens * State::stride);
    std::memset(output, 0, sizeof(T) * State::stride);
  }

  /// Reads tokens `range` of query head `head`. Prefetches those of `next` meanwhile.
  void read(const BackwardArgs<Config>& args, const SequenceSpan& span, const TokenRange& range, const TokenRange& next,
            std::int64_t head) {
    const auto rows_of = [&](const auto& view) {
      return RowPrefetch(view, span.batch_row, span.first_token + next.begin, span.first_token + next.end, head);
    };
    const RowPrefetch next_queries = rows_of(args.query);
    const RowPrefetch next_gradients = rows_of(args.output_gradient);
    const RowPrefetch next_outputs = has_denominators<Config> ? rows_of(args.output) : RowPrefetch{};
    tokens = static_cast<int>(range.size());
    for (int t = 0; t < tokens; ++t) {
      const std::int64_t token = span.first_token + range.begin + t;
      next_queries.issue(t, 1);
      next_gradients.issue(t, 1);
      next_outputs.issue(t, 1);
      Expansion::write_input(args.query.row(span.batch_row, token, head),
                             inputs + std::ptrdiff_t{t} * Expansion::input_stride);
      T* const row = gradient + std::ptrdiff_t{t} * State::stride;
      convert_row(args.output_gradient.row(span.batch_row, token, head), row, State::columns);
      denominator_gradient[t] = 0;
      if constexpr (has_denominators<Config>) {
        convert_row(args.output.row(span.batch_row, token, head), output, State::columns);
        scale(*args.denominators.row(span.batch_row, token, head), dot(output, row, State::stride), row,
              denominator_gradient + t);
      }
    }
  }

  /// Fills the matrices by token; columns after the last are 0.
  void transpose_rows() const {
    transpose(inputs, Expansion::input_stride, tokens, Map::input_dim, inputs_by_token, column_stride);
    transpose(gradient, State::stride, tokens, State::columns, gradient_by_token, column_stride);
    for (std::ptrdiff_t t = tokens; t < column_stride; ++t) {
      denominator_gradient[t] = 0;
    }
  }

  void expand(const Map& map, const SequenceSpan& span, std::int64_t first) const {
    for (int t = 0; t < tokens; ++t) {
      Expansion::expand_query(map, inputs + std::ptrdiff_t{t} * Expansion::input_stride,
                              features + std::ptrdiff_t{t} * Keys::feature_stride, span.position(first + t));
    }
  }

  /// R += Σ φ(q) gᵀ, its last column with it.
  void add_to(const State& reverse) const {
    multiply_tiles(reverse.sums(), State::stride, State::rows, State::stride,
                   Product<T>{Left<T>{features, 1, Keys::feature_stride}, Right<T>{gradient, State::stride}, tokens}, true);
    if constexpr (has_denominators<Config>) {
      T* const last = reverse.normaliser();
      for (int r = 0; r < State::normaliser_rows; r += lanes<T>) {
        Packet<T> sums = load(last + r);
        for (int t = 0; t < tokens; ++t) {
          sums = multiply_add(broadcast(denominator_gradient[t]),
                              load(features + std::ptrdiff_t{t} * Keys::feature_stride + r), sums);
        }
        store(last + r, sums);
      }
    }
  }

 private:
  static void scale(T denominator, T product, T* row, T* last) {
    const T factor = Config::Normaliser::factor(denominator);
    for (int c = 0; c < State::columns; ++c) {
      row[c] *= factor;
    }
    // A query that saw no key has the output 0 whatever it is: no gradient.
    *last = factor == T(0) ? T(0) : Config::Normaliser::factor_derivative(denominator) / factor * product;
  }
};

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
  /// Rows to prefetch with each tile of a product that has a row for each feature.
  static constexpr int rows_per_tile = ceil_div(chunk_tokens, ceil_div(State::rows, tile_rows));

  T* values_by_token = nullptr;    // [value_dim][column_stride]
  T* ones = nullptr;               // [column_stride]
  T* scores = nullptr;             // [chunk_tokens][column_stride]: q·k, then weights
  T* pairs_gradient = nullptr;     // [chunk_tokens][column_stride]: g·v', with a closed form times kernel'
  T* features_gradient = nullptr;  // [feature_dim][column_stride]
  T* inputs_gradient = nullptr;    // [input_dim][column_stride]
  T* values_gradient = nullptr;    // [chunk_tokens][State::stride]

  void take(Arena& arena) {
    values_by_token = arena.take<T>(State::columns * column_stride);
    ones = arena.take<T>(column_stride);
    scores = arena.take<T>(chunk_tokens * column_stride);
    pairs_gradient = arena.take<T>(chunk_tokens * column_stride);
    features_gradient = arena.take<T>(State::rows * column_stride);
    inputs_gradient = arena.take<T>(Map::input_dim * column_stride);
    values_gradient = arena.take<T>(std::int64_t{chunk_tokens} * State::stride);
  }

  void clear() const {
    for (std::ptrdiff_t t = 0; t < column_stride; ++t) {
      ones[t] = T(1);
    }
  }

  // -- queries ---------------------------------------------------------------------------------------------------------

  /// Gradients of the chunk's queries into `inputs_gradient`, from the state before the chunk and, unless `keys` is null,
  /// the chunk itself.
  void of_queries(const Queries& queries, const State& state, const Keys* keys, const Map& map, const SequenceSpan& span,
                  std::int64_t first) const {
    const int columns = padded_to_lanes<T>(queries.tokens);
    queries.transpose_rows();
    multiply_tiles(
        features_gradient, column_stride, State::rows, columns,
        {{Left<T>{state.sums(), State::stride, 1}, Right<T>{queries.gradient_by_token, column_stride}, State::columns},
         {Left<T>{state.normaliser(), 1, 1}, Right<T>{queries.denominator_gradient, column_stride}, 1}},
        false, {{}, {}}, 0);
    std::memset(inputs_gradient, 0, sizeof(T) * Map::input_dim * column_stride);
    if (keys != nullptr) {
      pairs_of_queries(queries, *keys, map);
      if constexpr (Map::has_closed_form) {
        multiply(
            inputs_gradient, Map::input_dim, columns,
            {Left<T>{keys->inputs, 1, Expansion::input_stride}, Right<T>{pairs_gradient, column_stride}, keys->tokens});
      } else {
        add_product(
            features_gradient, State::rows, columns,
            {Left<T>{keys->features, 1, Keys::feature_stride}, Right<T>{pairs_gradient, column_stride}, keys->tokens});
      }
    }
    Gradient::add_query(map,
                        {queries.inputs, Expansion::input_stride, queries.inputs_by_token, features_gradient, column_stride,
                         queries.tokens, first},
                        span, inputs_gradient);
  }

  // -- keys and values -------------------------------------------------------------------------------------------------

  /// Gradients of the chunk's keys and values from the queries after it. Prefetches the rows of `next` meanwhile.
  void begin_keys(const Keys& keys, const State& reverse, bool wants_keys, bool wants_values,
                  const RowPrefetch (&next)[2]) const {
    const int columns = padded_to_lanes<T>(keys.tokens);
    if (wants_keys) {
      transpose(keys.values, State::stride, keys.tokens, State::columns, values_by_token, column_stride);
      multiply_tiles(features_gradient, column_stride, State::rows, columns,
                     {{Left<T>{reverse.sums(), State::stride, 1}, Right<T>{values_by_token, column_stride}, State::columns},
                      {Left<T>{reverse.normaliser(), 1, 1}, Right<T>{ones, column_stride}, 1}},
                     false, next, rows_per_tile);
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

  /// pairs_gradient[j][i] for keys j and queries i; 0 for i < j.
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
          if constexpr (Map::has_closed_form) {
            pair *= map.kernel_derivative(score[r * column_stride + i]);
          }
          of_key[i] = i >= row + r ? pair : T(0);
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
