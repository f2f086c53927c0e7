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
#include "jrt/detail/cpu/linear/working_state.hpp"
#include "jrt/detail/plan/token_range.hpp"
#include "jrt/detail/shared/linear/denominators.hpp"
#include "jrt/detail/shared/linear/output_products.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/sequences.hpp"
#include "jrt/tensor_view.hpp"
#include "jrt/workspace.hpp"

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
  T* denominator_factor = nullptr;    // [column_stride], f'(n)/f(n)
  T* output = nullptr;                // [State::stride], padding 0
  int tokens = 0;

  void take(Arena& arena) {
    inputs = arena.take<T>(std::int64_t{chunk_tokens} * Expansion::input_stride);
    inputs_by_token = arena.take<T>(Map::input_dim * column_stride);
    features = arena.take<T>(std::int64_t{chunk_tokens} * Keys::feature_stride + Expansion::feature_overrun);
    gradient = arena.take<T>(std::int64_t{chunk_tokens} * State::stride);
    gradient_by_token = arena.take<T>(State::columns * column_stride);
    denominator_gradient = arena.take<T>(column_stride);
    denominator_factor = arena.take<T>(column_stride);
    output = arena.take<T>(State::stride);
  }

  void clear() const {
    std::memset(features, 0, sizeof(T) * chunk_tokens * Keys::feature_stride);
    std::memset(gradient, 0, sizeof(T) * chunk_tokens * State::stride);
    std::memset(output, 0, sizeof(T) * State::stride);
  }

  /// Reads tokens `range` of query head `head`. Prefetches those of `next` meanwhile. Where dy·y is formed again, the last
  /// components of g come from `known`, or are 0 without it.
  void read(const BackwardArgs<Config>& args, const TensorView<T>& known, const SequenceSpan& span, const TokenRange& range,
            const TokenRange& next, std::int64_t head) {
    const auto rows_of = [&](const auto& view) {
      return RowPrefetch(view, span.batch_row, span.first_token + next.begin, span.first_token + next.end, head);
    };
    const RowPrefetch next_queries = rows_of(args.query);
    const RowPrefetch next_gradients = rows_of(args.output_gradient);
    const RowPrefetch next_outputs = reads_output ? rows_of(args.output) : RowPrefetch{};
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
        T product = 0;
        if constexpr (reads_output) {
          convert_row(args.output.row(span.batch_row, token, head), output, State::columns);
          product = dot(output, row, State::stride);
        }
        denominator_factor[t] = scale(*args.denominators.row(span.batch_row, token, head), row);
        denominator_gradient[t] = denominator_factor[t] * product;
        if (!reads_output && known.data != nullptr) {
          denominator_gradient[t] = *known.row(span.batch_row, token, head);
        }
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
  static constexpr bool reads_output = has_denominators<Config> && !recomputes_output_products<Config>;

  /// Multiplies dy by f(n); returns f'(n)/f(n).
  static T scale(T denominator, T* row) {
    const T factor = Config::Normaliser::factor(denominator);
    for (int c = 0; c < State::columns; ++c) {
      row[c] *= factor;
    }
    // A query that saw no key has the output 0 whatever it is: no gradient.
    return factor == T(0) ? T(0) : Config::Normaliser::factor_derivative(denominator) / factor;
  }
};

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
