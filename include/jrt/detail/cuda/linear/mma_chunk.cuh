// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_pipeline.h>

#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/linear/mma_layout.cuh"
#include "jrt/detail/cuda/linear/mma_tiles.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/shared/linear/denominators.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/mixer/linear_attention.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// A chunk of tokens in shared memory, as all warps of MmaEngine compute it together: its keys, values and queries, their
/// features, the scores P, and the normalisers.
template <class Config>
class MmaChunk {
 protected:
  using Layout = MmaLayout<Config>;
  using Map = typename Layout::Map;
  using Element = typename Layout::Element;
  using Format = typename Layout::Format;
  using InputTile = typename Layout::InputTile;
  using ValueTile = typename Layout::ValueTile;
  using FeatureTile = typename Layout::FeatureTile;
  using ScoreTile = typename Layout::ScoreTile;

  static constexpr bool full = Layout::full;
  static constexpr int terms = Layout::terms;
  static constexpr int chunk = Layout::chunk;
  static constexpr int rows = Layout::rows;
  static constexpr int warps = Layout::warps;
  static constexpr int threads = Layout::threads;
  static constexpr int column_warps = Layout::column_warps;
  static constexpr int stages = Layout::stages;
  static constexpr int feature_tiles = Layout::feature_tiles;
  static constexpr int score_parts = Layout::score_parts;
  static constexpr int token_tiles = Layout::token_tiles;

  __device__ MmaChunk(const PrefillArgs<Config>& args, void* shared, int slice)
      : args_(args), first_column_(slice * Layout::columns) {
    SharedNumbers next(shared);
    const auto take = [&](auto& tile, int count) {
      tile.data = next;
      next = next + count * std::remove_reference_t<decltype(tile)>::elements;
    };
    take(keys_, stages);
    take(queries_, stages);
    take(values_, stages);
    take(key_features_, feature_tiles);
    query_features_ = key_features_.stage(feature_tiles - 1);
    take(scores_, 1);
    normaliser_ = reinterpret_cast<float*>(static_cast<__nv_bfloat16*>(shared) + Layout::bfloat16_elements);
    score_sums_ = normaliser_ + rows;
    factors_ = score_sums_ + score_parts * chunk;
    exchange_ = factors_ + chunk;
    warp_ = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
  }

  static __device__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  [[nodiscard]] __device__ int warp() const { return warp_; }
  [[nodiscard]] __device__ int half() const { return warp_ / column_warps; }
  /// First of this warp's 16 columns in the slice.
  [[nodiscard]] __device__ int column() const { return warp_ % column_warps * 16; }

  static __device__ int tokens_from(const TokenRange& range, std::int64_t begin) {
    return static_cast<int>(clamped(range.end - begin, 0, chunk));
  }

  /// Waits until the last chunk requested has arrived and all warps are done with the one before.
  static __device__ void await() {
    __pipeline_wait_prior(0);
    __syncthreads();
  }

  static __device__ bool aligned(const TensorView<const Element>& view) {
    return rows_aligned(view.data, view.batch_stride, view.token_stride, view.head_stride);
  }

  __device__ void read_keys(const KeySource<Element>& source, const TokenRange& range, std::int64_t begin, int stage) {
    const int tokens = tokens_from(range, begin);
    if (tokens == 0) {
      return;
    }
    const int zero_keys = static_cast<int>(clamped(source.zero_keys - begin, 0, chunk));
    read_rows<threads, Map::input_dim>(
        keys_.stage(stage),
        Rows<Element>{source.key_row(begin), source.key.token_stride, tokens, zero_keys, aligned(source.key)}, thread());
    read_rows<threads, Format::columns>(
        values_.stage(stage),
        Rows<Element>{source.value_row(begin) + first_column_, source.value.token_stride, tokens, 0, aligned(source.value)},
        thread(), Format::columns - first_column_);
  }

  __device__ void read_queries(const SequenceSpan& span, const TokenRange& range, std::int64_t begin, std::int64_t head,
                               int step) {
    const int tokens = tokens_from(range, begin);
    if (tokens == 0) {
      return;
    }
    const auto& query = args_.query;
    read_rows<threads, Map::input_dim>(queries_.stage(step),
                                       Rows<Element>{query.row(span.batch_row, span.first_token + begin, head),
                                                     query.token_stride, tokens, 0, aligned(query)},
                                       thread());
  }

  /// Features of a tile of tokens; those past the last token are 0.
  template <Side side>
  __device__ void expand_tokens(const InputTile& inputs, const FeatureTile& features, const SequenceSpan& span,
                                std::int64_t begin, int tokens) {
    // With more threads than tokens, several threads of different warps share a token.
    constexpr int parts = threads / chunk > 1 ? threads / chunk : 1;
    const int part = threads > chunk ? thread() / chunk : 0;
    for (int t = threads > chunk ? thread() % chunk : thread(); t < chunk && part < parts; t += threads) {
      float x[InputTile::columns];
#pragma unroll
      for (int c = 0; c < InputTile::columns; c += 8) {
        inputs.load(t, c, x + c);
      }
      if (t < tokens) {
        expand_to<side, rows, parts>(args_.feature_map, x, span.position(begin + t), part,
                                     [&](int r, const float(&numbers)[8]) { features.store(t, r, numbers); });
      } else {
        for (int r = 8 * part; r < rows; r += 8 * parts) {
          features.store(t, r, {});
        }
      }
    }
  }

  /// P[t][j] = φ(q_t)·φ(k_j) for j <= t, else 0, and the sums of its rows. A warp takes 16 tokens, or shares them with
  /// other warps.
  __device__ void score(int stage, int step) {
    const int part = warp() / token_tiles;
    for (int m = warp() % token_tiles; m < token_tiles && part < score_parts; m += warps) {
      float row_sums[2] = {0, 0};
      for (int n = part; n <= m; n += score_parts) {
        Accumulator sums[2] = {};
        if constexpr (Map::has_closed_form) {
          score_products(sums, queries_.stage(step), keys_.stage(stage), m, n);
        } else {
          score_products(sums, query_features_, key_features_, m, n);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int i = 0; i < 4; i += 2) {
            const int t = 16 * m + lane() / 4 + i / 2 * 8;
            const int j = 16 * n + 8 * half + lane() % 4 * 2;
            float weights[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              float weight = sums[half].values[i + e];
              if constexpr (Map::has_closed_form) {
                weight = args_.feature_map.kernel(weight);
              }
              weights[e] = j + e <= t ? weight : 0.0F;
            }
            const auto rounded = Terms<terms>::of(weights[0], weights[1]);
#pragma unroll
            for (int term = 0; term < terms; ++term) {
              store_pair(scores_.at(term, t, j), rounded.pairs[term]);
            }
            // Sums the rounded weights, by which the values are multiplied: then rounding moves weight, but adds none.
            const float2 used = rounded.sum();
            row_sums[i / 2] += used.x + used.y;
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        row_sums[i] += __shfl_xor_sync(~0u, row_sums[i], 1);
        row_sums[i] += __shfl_xor_sync(~0u, row_sums[i], 2);
        if (lane() % 4 == 0) {
          score_sums_[part * chunk + 16 * m + lane() / 4 + i * 8] = row_sums[i];
        }
      }
    }
  }

  /// Scores of 16 queries by 16 keys.
  template <class Tile>
  __device__ void score_products(Accumulator (&sums)[2], const Tile& query, const Tile& key, int m, int n) {
#pragma unroll
    for (int depth = 0; depth < Tile::columns; depth += 16) {
      LeftFragment left[terms];
      RightFragment right[2][terms];
#pragma unroll
      for (int term = 0; term < terms; ++term) {
        left[term] = load_left(query.at(term, 16 * m, depth), Tile::stride, lane());
        RightFragment both[2];
        load_right_transposed(both, key.at(term, 16 * n, depth), Tile::stride, lane());
        right[0][term] = both[0];
        right[1][term] = both[1];
      }
      multiply_terms(sums[0], left, right[0]);
      multiply_terms(sums[1], left, right[1]);
    }
  }

  /// factors[t] from φ(q_t)·z and the sums of scores. z is the only column of a right operand, in two terms; a warp takes
  /// 16 tokens.
  __device__ void normalise(const SequenceSpan& span, std::int64_t begin, int tokens, std::int64_t head) {
    for (int m = warp(); m < token_tiles; m += warps) {
      Accumulator sums{};
      if constexpr (Config::Normaliser::uses_denominator) {
#pragma unroll 5
        for (int r = 0; r < rows; r += 16) {
          RightFragment z[2] = {};
          if (lane() < 4) {
            const auto low = Terms<2>::of(normaliser_[r + 2 * lane()], normaliser_[r + 2 * lane() + 1]);
            const auto high = Terms<2>::of(normaliser_[r + 2 * lane() + 8], normaliser_[r + 2 * lane() + 9]);
            z[0] = {{low.pairs[0], high.pairs[0]}};
            z[1] = {{low.pairs[1], high.pairs[1]}};
          }
#pragma unroll
          for (int term = terms - 1; term >= 0; --term) {
            const LeftFragment left = load_left(query_features_.at(term, 16 * m, r), FeatureTile::stride, lane());
            multiply_add(sums, left, z[1]);
            multiply_add(sums, left, z[0]);
          }
        }
      }
      if (lane() % 4 == 0) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int t = 16 * m + lane() / 4 + i * 8;
          float denominator = sums.values[2 * i];
          if constexpr (Config::Normaliser::uses_denominator && !full) {
#pragma unroll
            for (int part = 0; part < score_parts; ++part) {
              denominator += score_sums_[part * chunk + t];
            }
          }
          factors_[t] = Config::Normaliser::factor(denominator);
          if (has_denominators<Config> && t < tokens && first_column_ == 0) {
            store_denominator(args_.denominators, span.batch_row, span.first_token + begin + t, head, denominator);
          }
        }
      }
    }
  }

  const PrefillArgs<Config>& args_;
  int first_column_;
  int warp_;
  InputTile keys_;  // stages of them, like the next two
  InputTile queries_;
  ValueTile values_;
  FeatureTile key_features_;
  FeatureTile query_features_;
  ScoreTile scores_;
  float* normaliser_;  // [rows]
  float* score_sums_;  // [score_parts][chunk]
  float* factors_;     // [chunk]
  float* exchange_;    // [chunk][columns], as the lanes have them
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
