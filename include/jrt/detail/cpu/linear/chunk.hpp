// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/expand.hpp"
#include "jrt/detail/cpu/core/stores.hpp"
#include "jrt/detail/cpu/core/tile.hpp"
#include "jrt/detail/cpu/core/transpose.hpp"
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
      transpose(columns, stride, tokens, score_depth, transposed, score_stride);
    }
  }

  /// S += Σ φ(k)vᵀ, z += Σ φ(k). Prefetches the tokens of `next` meanwhile.
  template <class Source>
  void add_to(const State& state, const Source& source, const TokenRange& next) const {
    std::int64_t begin = next.begin;
    if constexpr (requires { source.from_views; }) {
      begin = larger(begin, source.from_views);
    }
    const auto rows_of = [&](const auto& view) {
      return RowPrefetch(view, source.row, source.first + begin, source.first + next.end, source.head);
    };
    LinePrefetch next_rows(rows_of(source.key), rows_of(source.value));
    detail::cpu::add_product(state.sums(), State::stride, State::rows, State::stride, Left<T>{features, 1, feature_stride},
                             Right<T>{values, State::stride}, tokens, &next_rows);
    // Several packets at once: enough independent chains for the latency of additions.
    for_blocks<8>(State::normaliser_rows / lanes<T>, [&](auto packets, int first) {
      add_features<packets()>(state.normaliser() + first * lanes<T>, features + first * lanes<T>);
    });
  }

 private:
  /// z += Σ φ(k) for some packets of rows.
  template <int Packets>
  void add_features(T* z, const T* from) const {
    Packet<T> sums[Packets];
#pragma GCC unroll 8
    for (int p = 0; p < Packets; ++p) {
      sums[p] = load(from + p * lanes<T>);
    }
    for (int t = 1; t < tokens; ++t) {
#pragma GCC unroll 8
      for (int p = 0; p < Packets; ++p) {
        sums[p] = add(sums[p], load(from + std::ptrdiff_t{t} * feature_stride + p * lanes<T>));
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < Packets; ++p) {
      store(z + p * lanes<T>, add(load(z + p * lanes<T>), sums[p]));
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
  T* sums = nullptr;          // [tile_rows] denominator of each, 0 where outputs are not normalised
  T* factors = nullptr;       // [tile_rows] normaliser of each
  T* denominators = nullptr;  // [tile_rows]; null where outputs are not normalised

  void take(Arena& arena) {
    inputs = arena.take<T>(std::int64_t{chunk_tokens} * Expansion::input_stride);
    features = arena.take<T>(std::int64_t{tile_rows} * Chunk::feature_stride + Expansion::feature_overrun);
    scores = arena.take<T>(std::int64_t{tile_rows} * Chunk::score_stride);
    outputs = arena.take<T>(std::int64_t{tile_rows} * State::stride);
    sums = arena.take<T>(tile_rows);
    factors = arena.take<T>(tile_rows);
    if constexpr (has_denominators<Config>) {
      denominators = arena.take<T>(tile_rows);
    }
  }

  void clear() const {
    std::memset(inputs, 0, sizeof(T) * chunk_tokens * Expansion::input_stride);
    std::memset(features, 0, sizeof(T) * tile_rows * Chunk::feature_stride);
    std::memset(scores, 0, sizeof(T) * tile_rows * Chunk::score_stride);
  }

  /// Loads the query of token `t` of the chunk.
  void read(int t, const typename Config::Element* query) const {
    Expansion::write_input(query, inputs + std::ptrdiff_t{t} * Expansion::input_stride);
  }

  /// Outputs of `rows` queries, the first of which is token `first` of the chunk and has position `position`. `chunk` is
  /// null where queries read the state alone. Prefetches lines of `next` meanwhile.
  void compute(int rows, const State& state, const Chunk* chunk, int first, const Map& map, std::int64_t position,
               LinePrefetch& next) const {
    const int visible = chunk != nullptr ? first + rows : 0;
    for (int r = 0; r < rows; ++r) {
      Expansion::expand_query(map, inputs + std::ptrdiff_t{first + r} * Expansion::input_stride,
                              features + std::ptrdiff_t{r} * Chunk::feature_stride, position + r);
    }
    if (chunk != nullptr) {
      score(*chunk, first, map);
    }
    sum_of_products(outputs, State::stride, rows, State::stride,  //
                    Left<T>{features, Chunk::feature_stride, 1}, Right<T>{state.sums(), State::stride}, State::rows,
                    Left<T>{scores, Chunk::score_stride, 1},
                    Right<T>{chunk != nullptr ? chunk->values : state.sums(), State::stride}, visible, &next);
    sum_denominators(state, visible);
    for (int r = 0; r < rows; ++r) {
      factors[r] = Config::Normaliser::factor(sums[r]);
      if constexpr (has_denominators<Config>) {
        denominators[r] = sums[r];
      }
    }
  }

  /// Writes the output of row `r` of the last `compute`, converted.
  void write(int r, typename Config::Element* output, [[maybe_unused]] Stores stores) const {
    const T* const row = outputs + std::ptrdiff_t{r} * State::stride;
    const T factor = factors[r];
    if constexpr (std::is_same_v<T, typename Config::Element>) {
      if (stores == Stores::past_caches) {
        store_row_past_caches(row, factor, output, State::columns);
        return;
      }
    }
    for (int c = 0; c < State::columns; ++c) {
      output[c] = convert<typename Config::Element>(row[c] * factor);
    }
  }

 private:
  /// scores[r][j] = φ(q)·φ(k_j) for j <= first + r, else 0. Rows after the last query hold numbers that nobody reads.
  void score(const Chunk& chunk, int first, const Map& map) const {
    const int packets = padded_to_lanes<T>(smaller(first + tile_rows, chunk.tokens)) / lanes<T>;
    for_blocks<tile_packets>(
        packets, [&](auto count, int first_packet) { score_tile<count()>(chunk, first, first_packet * lanes<T>, map); });
    if constexpr (Chunk::may_lack_keys) {
      for (int r = 0; r < tile_rows; ++r) {
        std::memset(scores + std::ptrdiff_t{r} * Chunk::score_stride, 0,
                    sizeof(T) * static_cast<std::size_t>(smaller(chunk.first_key(), packets * lanes<T>)));
      }
    }
  }

  /// Some packets of `score`, from `column` on.
  template <int Packets>
  void score_tile(const Chunk& chunk, int first, int column, [[maybe_unused]] const Map& map) const {
    const T* const left = Map::has_closed_form ? inputs + std::ptrdiff_t{first} * Expansion::input_stride : features;
    constexpr std::ptrdiff_t left_stride = Map::has_closed_form ? Expansion::input_stride : Chunk::feature_stride;
    Tile<T, tile_rows, Packets> tile;
    tile.clear();
    tile.add_product({left, left_stride, 1}, {chunk.transposed + column, Chunk::score_stride}, Chunk::score_depth);
#pragma GCC unroll 8
    for (int r = 0; r < tile_rows; ++r) {
      T* const row = scores + std::ptrdiff_t{r} * Chunk::score_stride + column;
#pragma GCC unroll 8
      for (int p = 0; p < Packets; ++p) {
        Packet<T> weights = tile.sums[r][p];
        if constexpr (Map::has_closed_form) {
          weights = Expansion::kernel(map, weights);
        }
        store(row + p * lanes<T>, first_lanes<T>(weights, first + r + 1 - column - p * lanes<T>));
      }
    }
  }

  /// sums[r] = the denominator of row r: φ(q)·z and the scores. Of all rows at once, so that z is loaded once; rows after
  /// the last query hold numbers of earlier ones.
  void sum_denominators([[maybe_unused]] const State& state, [[maybe_unused]] int visible) const {
    if constexpr (Config::Normaliser::uses_denominator) {
      Packet<T> parts[tile_rows];
      for (Packet<T>& part : parts) {
        part = broadcast(T(0));
      }
      for (int f = 0; f < Chunk::feature_stride; f += lanes<T>) {
        const Packet<T> z = load(state.normaliser() + f);
#pragma GCC unroll 8
        for (int r = 0; r < tile_rows; ++r) {
          parts[r] = multiply_add(load(features + std::ptrdiff_t{r} * Chunk::feature_stride + f), z, parts[r]);
        }
      }
      // Scores after the last visible one are 0 up to a whole packet.
      for (int column = 0; column < visible; column += lanes<T>) {
#pragma GCC unroll 8
        for (int r = 0; r < tile_rows; ++r) {
          parts[r] = add(parts[r], load(scores + std::ptrdiff_t{r} * Chunk::score_stride + column));
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < tile_rows; ++r) {
        sums[r] = Eigen::internal::predux(parts[r]);
      }
    } else {
      std::memset(sums, 0, sizeof(T) * tile_rows);
    }
  }
};

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
