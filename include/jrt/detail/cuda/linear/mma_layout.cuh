// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/cuda/linear/mma_tiles.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/mixer/linear_attention.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Sizes of MmaEngine: what a warp owns, and what a block has in shared memory.
///
///     S (rows x columns), in registers          shared memory, in this order
///              16      16            16         keys       [stages][terms][chunk][d]
///          +-------+-------+-- … --+-------+    queries    [stages][terms][chunk][d]
///     half | warp  | warp  |       | warp  |    values     [stages][terms][chunk][columns]
///     rows |   0   |   1   |       | W − 1 |    features   [feature_tiles][terms][chunk][rows]
///          +-------+-------+-- … --+-------+    scores P   [terms][chunk][chunk]
///     half |   W   | W + 1 |       |2W − 1 |    z          [rows], float, like all that follows
///     rows +-------+-------+-- … --+-------+    score sums [score_parts][chunk], factors [chunk]
///       (one row of warps if halves = 1)        exchange   [chunk][columns] if halves = 2
template <class Config>
struct MmaLayout {
  using T = ConfigCompute<Config>;
  using Map = typename Config::FeatureMap;
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  static constexpr MmaPrefillTuning tuning = mma_prefill_tuning;
  static constexpr int halves = Map::feature_dim <= tuning.max_rows_of_one_half ? 1 : 2;
  static constexpr int rows = round_up(Map::feature_dim, 16 * halves);
  static constexpr int half_rows = rows / halves;  // one half's
  static constexpr int terms = std::is_same_v<Element, BFloat16> ? 1 : 2;
  static constexpr int slices = ceil_div(Config::value_dim, tuning.max_columns);
  static constexpr int columns = round_up(ceil_div(Config::value_dim, slices), 16);  // of one slice
  static constexpr int column_warps = columns / 16;
  static constexpr int warps = halves * column_warps;
  static constexpr int threads = warps * 32;
  static constexpr int blocks_per_multiprocessor =
      threads * (half_rows <= tuning.max_rows_of_two_blocks ? 128 : 255) <= 32768 ? 2 : 1;
  static constexpr std::int64_t scratch_bytes = 0;

  /// Keys and values are read one chunk ahead, queries one step (chunk and query head) ahead.
  static constexpr int stages = tuning.stages;
  /// Without a closed form scores need the features of queries and keys at once; otherwise they use one tile in turn.
  static constexpr int feature_tiles = Map::has_closed_form ? 1 : 2;

  /// Shared memory of a chunk of `tokens` tokens.
  template <int tokens>
  struct Chunk {
    using InputTile = TermTile<terms, tokens, round_up(Map::input_dim, 16)>;
    using ValueTile = TermTile<terms, tokens, columns>;
    using FeatureTile = TermTile<terms, tokens, rows>;
    using ScoreTile = TermTile<terms, tokens, tokens>;
    static constexpr int bfloat16_elements = stages * (2 * InputTile::elements + ValueTile::elements) +
                                             feature_tiles * FeatureTile::elements + ScoreTile::elements;
    static constexpr int score_parts = larger(1, warps / (tokens / 16));  // warps that share the scores of 16 tokens
    static constexpr int exchange_elements = halves > 1 ? tokens* columns : 0;
    static constexpr int float_elements = rows + (score_parts + 1) * tokens + exchange_elements;
    static constexpr std::size_t shared_bytes = sizeof(__nv_bfloat16) * bfloat16_elements + sizeof(float) * float_elements;
  };

  static constexpr std::size_t shared_limit = shared_bytes_everywhere;
  static constexpr bool chunk_is_long = terms == 1 && Chunk<tuning.long_chunk>::shared_bytes <= shared_limit;
  static constexpr int chunk = chunk_is_long ? tuning.long_chunk : tuning.short_chunk;

  using InputTile = typename Chunk<chunk>::InputTile;
  using ValueTile = typename Chunk<chunk>::ValueTile;
  using FeatureTile = typename Chunk<chunk>::FeatureTile;
  using ScoreTile = typename Chunk<chunk>::ScoreTile;
  static constexpr int bfloat16_elements = Chunk<chunk>::bfloat16_elements;
  static constexpr int score_parts = Chunk<chunk>::score_parts;
  static constexpr std::size_t shared_bytes = Chunk<chunk>::shared_bytes;

  static constexpr bool supported = (sizeof(Element) == 2 || ProductsOf<Config>::type::splits_numbers) &&
                                    std::is_same_v<T, float> && half_rows <= tuning.max_half_rows &&
                                    Map::input_dim <= 128 && shared_bytes <= shared_limit;

  // Fragments of 16 tokens.
  static constexpr int token_tiles = chunk / 16;
  static constexpr int kept_tiles = token_tiles / halves;  // of which a half completes the outputs
  static constexpr bool full = Config::Mask::reads_future;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
