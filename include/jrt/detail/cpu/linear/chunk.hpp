// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/expand.hpp"
#include "jrt/detail/cpu/core/tile.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/detail/cpu/linear/working_state.hpp"
#include "jrt/detail/plan/segment.hpp"
#include "jrt/detail/shared/linear/denominators.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/sequences.hpp"
#include "jrt/tensor_view.hpp"
#include "jrt/workspace.hpp"

/// A chunk of tokens of one head, and the two operations on it: its keys and values are added to the state, its queries
/// read the state and the chunk.
namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// Keys, features and values of up to chunk_tokens tokens, in the compute type, packed for the tiles.
template <AttentionConfig Config>
struct KeyChunk {
  using T = ConfigCompute<Config>;
  using Map = typename Config::FeatureMap;
  using State = WorkingState<StateFormatOf<Config>, T>;

  static constexpr int feature_stride = State::normaliser_rows;
  static constexpr int score_stride = padded_to_lanes<T>(chunk_tokens);
  /// Depth of the products that give the scores inside a chunk: q·k where φ(q)·φ(k) has a closed form in it, else
  /// φ(q)·φ(k).
  static constexpr int score_depth = Map::has_closed_form ? Map::input_dim : Map::feature_dim;

  using Expansion = RowExpansion<Map, T>;
  static constexpr bool may_lack_keys = consumes_evicted_keys<Config>;

  T* inputs = nullptr;      // [chunk_tokens][Expansion::input_stride]
  T* features = nullptr;    // [chunk_tokens][feature_stride], padding 0
  T* values = nullptr;      // [chunk_tokens][State::stride], padding 0
  T* transposed = nullptr;  // [score_depth][score_stride]
  int tokens = 0;
  int tokens_without_key = 0;  // leading tokens without a key; only where keys come from a window

  void take(Arena& arena) {
    inputs = arena.take<T>(std::int64_t{chunk_tokens} * Expansion::input_stride);
    features = arena.take<T>(std::int64_t{chunk_tokens} * feature_stride + Expansion::feature_overrun);
    values = arena.take<T>(std::int64_t{chunk_tokens} * State::stride);
    transposed = arena.take<T>(std::int64_t{score_depth} * score_stride);
  }

  void clear() const {
    std::memset(features, 0, sizeof(T) * chunk_tokens * feature_stride);
    std::memset(values, 0, sizeof(T) * chunk_tokens * State::stride);
    std::memset(transposed, 0, sizeof(T) * score_depth * score_stride);
  }

  [[nodiscard]] int first_key() const { return may_lack_keys ? tokens_without_key : 0; }

  /// Reads tokens [range.begin, range.end) of the source; `for_queries` also prepares the scores.
  template <class Source>
  void read(const Source& source, const TokenRange& range, const Map& map, bool for_queries) {
    tokens = static_cast<int>(range.size());
    tokens_without_key = 0;
    if constexpr (requires { source.tokens_without_key_in(range); }) {
      tokens_without_key = source.tokens_without_key_in(range);
      std::memset(inputs, 0, sizeof(T) * static_cast<std::size_t>(tokens_without_key) * Expansion::input_stride);
      std::memset(values, 0, sizeof(T) * static_cast<std::size_t>(tokens_without_key) * State::stride);
      std::memset(features, 0, sizeof(T) * static_cast<std::size_t>(tokens_without_key) * feature_stride);
    }
    for (int t = first_key(); t < tokens; ++t) {
      const std::int64_t token = range.begin + t;
      T* const input = inputs + std::ptrdiff_t{t} * Expansion::input_stride;
      if (token < source.zero_keys) {
        std::memset(input, 0, sizeof(T) * Expansion::input_stride);
      } else {
        Expansion::write_input(source.key_row(token), input);
      }
      convert_row(source.value_row(token), values + std::ptrdiff_t{t} * State::stride, State::columns);
    }
    for (int t = first_key(); t < tokens; ++t) {
      T* const feature = features + std::ptrdiff_t{t} * feature_stride;
      Expansion::expand_key(map, inputs + std::ptrdiff_t{t} * Expansion::input_stride, feature,
                            source.span.position(range.begin + t));
    }
    if (for_queries) {
      const T* const columns = Map::has_closed_form ? inputs : features;
      const std::ptrdiff_t stride = Map::has_closed_form ? Expansion::input_stride : feature_stride;
      for (int t = 0; t < tokens; ++t) {
        for (int k = 0; k < score_depth; ++k) {
          transposed[k * score_stride + t] = columns[t * stride + k];
        }
      }
    }
  }

  /// S += Σ φ(k)vᵀ, z += Σ φ(k). Prefetches the tokens of `next` meanwhile, a few with every tile.
  template <class Source>
  void add_to(const State& state, const Source& source, const TokenRange& next) const {
    constexpr int tiles = ceil_div(State::rows, tile_rows);
    constexpr int tokens_per_tile = ceil_div(chunk_tokens, tiles);
    std::int64_t begin = next.begin;
    if constexpr (requires { source.from_views; }) {
      begin = larger(begin, source.from_views);
    }
    const auto rows_of = [&](const auto& view) {
      return RowPrefetch(view, source.row, source.first + begin, source.first + next.end, source.head);
    };
    detail::cpu::add_product(state.sums(), State::stride, State::rows, State::stride, Left<T>{features, 1, feature_stride},
                             Right<T>{values, State::stride}, tokens, {rows_of(source.key), rows_of(source.value)},
                             tokens_per_tile);
    T* const z = state.normaliser();
    for (int r = 0; r < State::normaliser_rows; r += lanes<T>) {
      Packet<T> sums = broadcast(T(0));
      for (int t = 0; t < tokens; ++t) {
        sums = add(sums, load(features + std::ptrdiff_t{t} * feature_stride + r));
      }
      store(z + r, add(load(z + r), sums));
    }
  }
};

/// The queries of a chunk and their outputs, tile_rows at a time: from a state and, unless the mask reads all tokens, from
/// the chunk that the queries are in.
template <AttentionConfig Config>
struct QueryBlock {
  using T = ConfigCompute<Config>;
  using Map = typename Config::FeatureMap;
  using Chunk = KeyChunk<Config>;
  using State = typename Chunk::State;

  using Expansion = typename Chunk::Expansion;

  T* inputs = nullptr;        // [chunk_tokens][Expansion::input_stride]
  T* features = nullptr;      // [tile_rows][feature_stride], padding 0
  T* scores = nullptr;        // [tile_rows][score_stride]
  T* outputs = nullptr;       // [tile_rows][State::stride], not normalised
  T* factors = nullptr;       // [tile_rows] normaliser of each
  T* denominators = nullptr;  // [tile_rows]; null where outputs are not normalised

  void take(Arena& arena) {
    inputs = arena.take<T>(std::int64_t{chunk_tokens} * Expansion::input_stride);
    features = arena.take<T>(std::int64_t{tile_rows} * Chunk::feature_stride + Expansion::feature_overrun);
    scores = arena.take<T>(std::int64_t{tile_rows} * Chunk::score_stride);
    outputs = arena.take<T>(std::int64_t{tile_rows} * State::stride);
    factors = arena.take<T>(tile_rows);
    if constexpr (has_denominators<Config>) {
      denominators = arena.take<T>(tile_rows);
    }
  }

  void clear() const { std::memset(features, 0, sizeof(T) * tile_rows * Chunk::feature_stride); }

  /// Loads the query of token `t` of the chunk.
  void read(int t, const typename Config::Element* query) const {
    Expansion::write_input(query, inputs + std::ptrdiff_t{t} * Expansion::input_stride);
  }

  /// Outputs of `rows` queries, the first of which is token `first` of the chunk and has position `position`. `chunk` is
  /// null where queries read the state alone.
  void compute(int rows, const State& state, const Chunk* chunk, int first, const Map& map, std::int64_t position) const {
    const int visible = chunk != nullptr ? first + rows : 0;
    for (int r = 0; r < rows; ++r) {
      Expansion::expand_query(map, inputs + std::ptrdiff_t{first + r} * Expansion::input_stride,
                              features + std::ptrdiff_t{r} * Chunk::feature_stride, position + r);
    }
    if (chunk != nullptr) {
      score(rows, *chunk, first, map);
    }
    sum_of_products(outputs, State::stride, rows, State::stride,  //
                    Left<T>{features, Chunk::feature_stride, 1}, Right<T>{state.sums(), State::stride}, State::rows,
                    Left<T>{scores, Chunk::score_stride, 1},
                    Right<T>{chunk != nullptr ? chunk->values : state.sums(), State::stride}, visible);
    for (int r = 0; r < rows; ++r) {
      const T sum = denominator(r, state, visible);
      factors[r] = Config::Normaliser::factor(sum);
      if constexpr (has_denominators<Config>) {
        denominators[r] = sum;
      }
    }
  }

  /// Writes the output of row `r` of the last `compute`, converted.
  void write(int r, typename Config::Element* output) const {
    const T* const row = outputs + std::ptrdiff_t{r} * State::stride;
    const T factor = factors[r];
    for (int c = 0; c < State::columns; ++c) {
      output[c] = convert<typename Config::Element>(row[c] * factor);
    }
  }

 private:
  /// scores[r][j] = φ(q)·φ(k_j) for j <= first + r, else 0.
  void score(int rows, const Chunk& chunk, int first, [[maybe_unused]] const Map& map) const {
    const int columns = padded_to_lanes<T>(first + rows);
    const T* const left = Map::has_closed_form ? inputs + std::ptrdiff_t{first} * Expansion::input_stride : features;
    const std::ptrdiff_t left_stride = Map::has_closed_form ? Expansion::input_stride : Chunk::feature_stride;
    sum_of_products(scores, Chunk::score_stride, rows, columns, Left<T>{left, left_stride, 1},
                    Right<T>{chunk.transposed, Chunk::score_stride}, Chunk::score_depth, Left<T>{left, 0, 0},
                    Right<T>{chunk.transposed, 0}, 0);
    for (int r = 0; r < rows; ++r) {
      T* const row = scores + std::ptrdiff_t{r} * Chunk::score_stride;
      const int seen = first + r;
      for (int j = 0; j < columns; ++j) {
        T weight = row[j];
        if constexpr (Map::has_closed_form) {
          weight = map.kernel(weight);
        }
        row[j] = j <= seen && j >= chunk.first_key() ? weight : T(0);
      }
    }
  }

  [[nodiscard]] T denominator([[maybe_unused]] int r, [[maybe_unused]] const State& state,
                              [[maybe_unused]] int visible) const {
    if constexpr (Config::Normaliser::uses_denominator) {
      const T before = dot(features + std::ptrdiff_t{r} * Chunk::feature_stride, state.normaliser(), Chunk::feature_stride);
      // Scores after the last visible one are 0 up to a whole packet.
      return visible > 0 ? before + sum(scores + std::ptrdiff_t{r} * Chunk::score_stride, padded_to_lanes<T>(visible))
                         : before;
    } else {
      return T(0);
    }
  }
};

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
