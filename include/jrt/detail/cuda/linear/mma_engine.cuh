// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/linear/mma_chunk.cuh"
#include "jrt/detail/cuda/linear/mma_layout.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/mixer/linear_attention.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Prefill of one head's tokens by one block on the matrix units, for 16-bit elements (or float ones as two terms) and up
/// to some hundred features.
///
/// A warp owns 16 columns of v and all rows of the state, or one of two halves of them where all would not fit in its
/// registers. It keeps them transposed, Sᵀ (columns x rows), in the accumulators of the matrix unit, in float:
///
///     update   Sᵀ += vᵀ·φ(k)      left: v of the tile, transposed on loading; right: features
///     outputs  y = φ(q)·S + P·v   right: the accumulators of Sᵀ, rounded to terms, are already fragments of S
///
/// so that the state never goes through shared memory. With halves, an output is the sum of both halves' shares; each half
/// completes it for half of the tokens. All warps compute features, scores P and normalisers together.
template <AttentionConfig Config>
class MmaEngine : private MmaChunk<Config> {
  using Chunk = MmaChunk<Config>;

 public:
  using Layout = MmaLayout<Config>;
  using Map = typename Layout::Map;
  using Element = typename Layout::Element;
  using Format = typename Layout::Format;

  static constexpr bool supported = Layout::supported;
  static constexpr int threads = Layout::threads;
  static constexpr int blocks_per_multiprocessor = Layout::blocks_per_multiprocessor;
  static constexpr int chunk = Layout::chunk;
  static constexpr int slices = Layout::slices;
  static constexpr bool slices_need_partials = slices > 1;
  static constexpr std::size_t shared_bytes = Layout::shared_bytes;
  static constexpr std::int64_t scratch_bytes = 0;

  __device__ MmaEngine(const PrefillArgs<Config>& args, void* shared, void* /*scratch*/, int slice)
      : Chunk(args, shared, slice), first_slice_(slice == 0) {}

  /// As SimtEngine::for_state.
  template <class Function>
  __device__ void for_state(const Function& function) {
#pragma unroll
    for (int tile = 0; tile < half_rows / 8; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int c = first_column_ + column() + lane() / 4 + i / 2 * 8;
        const int r = half() * half_rows + 8 * tile + lane() % 4 * 2 + i % 2;
        if (r < Format::rows && c < Format::columns) {
          function(std::int64_t{r} * Format::columns + c, state_[tile].values[i], true);
        } else {
          state_[tile].values[i] = 0;
        }
      }
    }
    for (int r = thread(); r < rows; r += threads) {
      if (r < Format::rows) {
        function(Format::normaliser_offset + r, normaliser_[r], first_slice_);
      } else {
        normaliser_[r] = 0;
      }
    }
  }

  /// S += Σ φ(k)vᵀ, z += Σ φ(k) over a range of tokens.
  __device__ void accumulate(const KeySource<Element>& source, const TokenRange& range) {
    __syncthreads();
    read_keys(source, range, range.begin, 0);
    __pipeline_commit();
    int stage = 0;
    for (std::int64_t begin = range.begin; begin < range.end; begin += chunk, stage ^= 1) {
      await();
      read_keys(source, range, begin + chunk, stage ^ 1);
      __pipeline_commit();
      Chunk::template expand_tokens<Side::key>(keys_.stage(stage), key_features_, source.span, begin,
                                               tokens_from(range, begin));
      __syncthreads();
      update(stage);
    }
    __pipeline_wait_prior(0);
    __syncthreads();
  }

  /// As SimtEngine::outputs.
  __device__ void outputs(const KeySource<Element>& source, const TokenRange& range) {
    const std::int64_t group = args_.query.heads / args_.key.heads;
    __syncthreads();
    if constexpr (!full) {
      read_keys(source, range, range.begin, 0);
    }
    read_queries(source.span, range, range.begin, source.head * group, 0);
    __pipeline_commit();
    int stage = 0;
    int step = 0;
    for (std::int64_t begin = range.begin; begin < range.end; begin += chunk, stage ^= 1) {
      const int tokens = tokens_from(range, begin);
      for (std::int64_t g = 0; g < group; ++g, step ^= 1) {
        await();
        const bool last = g + 1 == group;
        if (!full && last) {
          read_keys(source, range, begin + chunk, stage ^ 1);
        }
        read_queries(source.span, range, last ? begin + chunk : begin, source.head * group + (last ? 0 : g + 1), step ^ 1);
        __pipeline_commit();
        if (!full && feature_tiles == 2 && g == 0) {
          Chunk::template expand_tokens<Side::key>(keys_.stage(stage), key_features_, source.span, begin, tokens);
        }
        Chunk::template expand_tokens<Side::query>(queries_.stage(step), query_features_, source.span, begin, tokens);
        if constexpr (!full) {
          if constexpr (feature_tiles == 2) {
            __syncthreads();
          }
          score(stage, step);
        }
        __syncthreads();
        normalise(source.span, begin, tokens, source.head * group + g);
        write_outputs(stage);
        give_away();
        __syncthreads();
        write(source.span, begin, tokens, source.head * group + g);
      }
      if constexpr (!full) {
        if constexpr (feature_tiles == 1) {
          Chunk::template expand_tokens<Side::key>(keys_.stage(stage), key_features_, source.span, begin, tokens);
          __syncthreads();
        }
        update(stage);
      }
    }
    __pipeline_wait_prior(0);
    __syncthreads();
  }

 private:
  using FeatureTile = typename Layout::FeatureTile;
  using ScoreTile = typename Layout::ScoreTile;
  using ValueTile = typename Layout::ValueTile;
  static constexpr bool full = Layout::full;
  static constexpr int terms = Layout::terms;
  static constexpr int rows = Layout::rows;
  static constexpr int halves = Layout::halves;
  static constexpr int half_rows = Layout::half_rows;
  static constexpr int warps = Layout::warps;
  static constexpr int column_warps = Layout::column_warps;
  static constexpr int feature_tiles = Layout::feature_tiles;
  static constexpr int token_tiles = Layout::token_tiles;
  static constexpr int kept_tiles = Layout::kept_tiles;

  using Chunk::args_;
  using Chunk::exchange_;
  using Chunk::factors_;
  using Chunk::first_column_;
  using Chunk::key_features_;
  using Chunk::keys_;
  using Chunk::normaliser_;
  using Chunk::queries_;
  using Chunk::query_features_;
  using Chunk::scores_;
  using Chunk::values_;
  using Chunk::warp_;

  using Chunk::await;
  using Chunk::column;
  using Chunk::half;
  using Chunk::lane;
  using Chunk::normalise;
  using Chunk::read_keys;
  using Chunk::read_queries;
  using Chunk::score;
  using Chunk::thread;
  using Chunk::tokens_from;
  using Chunk::warp;

  /// outputs = φ(q)·S + P·v, not normalised: over this half's rows of S, and every other 16 of the chunk's keys.
  __device__ void write_outputs(int stage) {
#pragma unroll
    for (int m = 0; m < token_tiles; ++m) {
      outputs_[m][0] = {};
      outputs_[m][1] = {};
    }
#pragma unroll
    for (int tile = 0; tile < half_rows / 8; tile += 2) {
      RightFragment state[2][terms];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const auto low = Terms<terms>::of(state_[tile].values[2 * n], state_[tile].values[2 * n + 1]);
        const auto high = Terms<terms>::of(state_[tile + 1].values[2 * n], state_[tile + 1].values[2 * n + 1]);
#pragma unroll
        for (int term = 0; term < terms; ++term) {
          state[n][term] = {{low.pairs[term], high.pairs[term]}};
        }
      }
#pragma unroll
      for (int m = 0; m < token_tiles; ++m) {
        LeftFragment left[terms];
#pragma unroll
        for (int term = 0; term < terms; ++term) {
          left[term] =
              load_left(query_features_.at(term, 16 * m, half() * half_rows + 8 * tile), FeatureTile::stride, lane());
        }
        multiply_terms(outputs_[m][0], left, state[0]);
        multiply_terms(outputs_[m][1], left, state[1]);
      }
    }
    if constexpr (!full) {
#pragma unroll
      for (int n = 0; n < token_tiles; ++n) {
        // Keys 0-15 are seen by the most queries, so one half takes tiles of keys 0 and 3, the other 1 and 2.
        if ((n + n / 2) % halves != half()) {
          continue;
        }
        RightFragment value[2][terms];
        load_values(value, stage, n);
#pragma unroll
        for (int m = n; m < token_tiles; ++m) {
          LeftFragment left[terms];
#pragma unroll
          for (int term = 0; term < terms; ++term) {
            left[term] = load_left(scores_.at(term, 16 * m, 16 * n), ScoreTile::stride, lane());
          }
          multiply_terms(outputs_[m][0], left, value[0]);
          multiply_terms(outputs_[m][1], left, value[1]);
        }
      }
    }
  }

  /// Loads this warp's 16 columns of 16 tokens of v as right operands.
  __device__ void load_values(RightFragment (&value)[2][terms], int stage, int n) {
#pragma unroll
    for (int term = 0; term < terms; ++term) {
      RightFragment both[2];
      load_right(both, values_.stage(stage).at(term, 16 * n, column()), ValueTile::stride, lane());
      value[0][term] = both[0];
      value[1][term] = both[1];
    }
  }

  /// Where this lane's values of a tile are in the exchange between the two warps of the same columns.
  [[nodiscard]] __device__ float4* exchanged(int m, int n) const {
    return reinterpret_cast<float4*>(exchange_) + ((warp_ % column_warps * token_tiles + m) * 2 + n) * 32 + lane();
  }

  /// Stores this half's shares of the other half's outputs.
  __device__ void give_away() {
#pragma unroll
    for (int m = 0; m < token_tiles; ++m) {
#pragma unroll
      for (int n = 0; n < 2 && m / kept_tiles != half(); ++n) {
        const auto& values = outputs_[m][n].values;
        *exchanged(m, n) = make_float4(values[0], values[1], values[2], values[3]);
      }
    }
  }

  /// Completes, normalises and writes the outputs of this half's tokens.
  __device__ void write(const SequenceSpan& span, std::int64_t begin, int tokens, std::int64_t head) {
    const auto& output = args_.output;
    const bool pairs_aligned = rows_aligned_to_pairs(output);
    const int first = column() + lane() % 4 * 2;
    Element* const base = output.row(span.batch_row, span.first_token + begin, head) + first_column_ + first;
#pragma unroll
    for (int m = 0; m < token_tiles; ++m) {
      if (m / kept_tiles != half()) {
        continue;
      }
      if constexpr (halves > 1) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const float4 other = *exchanged(m, n);
          outputs_[m][n].values[0] += other.x;
          outputs_[m][n].values[1] += other.y;
          outputs_[m][n].values[2] += other.z;
          outputs_[m][n].values[3] += other.w;
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int t = 16 * m + lane() / 4 + i * 8;
        if (t >= tokens) {
          continue;
        }
        const float factor = factors_[t];
        Element* const row = base + t * output.token_stride;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          // Where all slices are full, no column is missing.
          const int room = Format::columns % Layout::columns == 0 ? 2 : Format::columns - first_column_ - first - 8 * n;
          const Vector<Element, 2> pair{{convert<Element>(outputs_[m][n].values[2 * i] * factor),
                                         convert<Element>(outputs_[m][n].values[2 * i + 1] * factor)}};
          if (pairs_aligned && room >= 2) {
            store_vector(row + 8 * n, pair);
          } else {
            for (int e = 0; e < 2 && e < room; ++e) {
              row[8 * n + e] = pair[e];
            }
          }
        }
      }
    }
  }

  static __device__ bool rows_aligned_to_pairs(const TensorView<Element>& output) {
    return reinterpret_cast<std::uintptr_t>(output.data) % (2 * sizeof(Element)) == 0 &&
           (output.batch_stride | output.token_stride | output.head_stride) % 2 == 0;
  }

  /// S += φ(k)vᵀ, z += φ(k). A chunk's products are summed separately and added in one step: the matrix unit truncates
  /// where an addition rounds, and over a million tokens the error would be visible.
  __device__ void update(int stage) {
    LeftFragment value[token_tiles][terms];
#pragma unroll
    for (int k = 0; k < token_tiles; ++k) {
#pragma unroll
      for (int term = 0; term < terms; ++term) {
        value[k][term] = load_left_transposed(values_.stage(stage).at(term, 16 * k, column()), ValueTile::stride, lane());
      }
    }
#pragma unroll
    for (int tile = 0; tile < half_rows / 8; tile += 2) {
      Accumulator sums[2] = {};
#pragma unroll
      for (int k = 0; k < token_tiles; ++k) {
        RightFragment features[2][terms];
#pragma unroll
        for (int term = 0; term < terms; ++term) {
          RightFragment both[2];
          load_right(both, key_features_.at(term, 16 * k, half() * half_rows + 8 * tile), FeatureTile::stride, lane());
          features[0][term] = both[0];
          features[1][term] = both[1];
        }
        multiply_terms(sums[0], value[k], features[0]);
        multiply_terms(sums[1], value[k], features[1]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        state_[tile].values[i] += sums[0].values[i];
        state_[tile + 1].values[i] += sums[1].values[i];
      }
    }
    // z is the same sum with ones for v; the warps share its rows.
    for (int row = 16 * warp(); row < rows; row += 16 * warps) {
      constexpr Pair one_one = 0x3f803f80;
      const LeftFragment ones{{one_one, one_one, one_one, one_one}};
      Accumulator sums[2] = {};
#pragma unroll
      for (int k = 0; k < token_tiles; ++k) {
#pragma unroll
        for (int term = terms - 1; term >= 0; --term) {
          RightFragment features[2];
          load_right(features, key_features_.at(term, 16 * k, row), FeatureTile::stride, lane());
          multiply_add(sums[0], ones, features[0]);
          multiply_add(sums[1], ones, features[1]);
        }
      }
      if (lane() < 4) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          normaliser_[row + 8 * n + 2 * lane()] += sums[n].values[0];
          normaliser_[row + 8 * n + 2 * lane() + 1] += sums[n].values[1];
        }
      }
    }
  }

  bool first_slice_;
  Accumulator state_[half_rows / 8];     // Sᵀ: this warp's 16 columns, 8 rows each
  Accumulator outputs_[token_tiles][2];  // 16 tokens, 2 x 8 columns
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
