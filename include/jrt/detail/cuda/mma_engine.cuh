// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cub/warp/warp_reduce.cuh>

#include <cstdint>
#include <type_traits>

#include "jrt/attention_config.hpp"
#include "jrt/detail/cuda/mma_tiles.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/key_source.hpp"
#include "jrt/prefill.hpp"

namespace jrt::detail::cuda {

/// Prefill of one head's tokens by one block on the matrix units, for 16-bit elements and up to 176 features.
///
/// Warp w owns columns 16w … 16w+15 of v and keeps its part of the state transposed, Sᵀ (columns x rows), in the accumulators
/// of the matrix unit, in float:
///
///     update   Sᵀ += vᵀ·φ(k)      left: v of the tile, transposed on loading; right: features
///     answer   y = φ(q)·S + P·v   right: the accumulators of Sᵀ, rounded to terms, are the fragments of S as they stand
///
/// so that the state never goes through shared memory. Features, scores P and normalisers are formed together by all warps.
template <AttentionConfig Config>
class MmaEngine {
 public:
  using T = ConfigCompute<Config>;
  using Map = typename Config::FeatureMap;
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  static constexpr int rows = round_up(Map::feature_dim, 16);
  static constexpr bool supported =
      sizeof(Element) == 2 && std::is_same_v<T, float> && rows <= 176 && Map::input_dim <= 128;

  static constexpr int terms = std::is_same_v<Element, BFloat16> ? 1 : 2;
  static constexpr int chunk = terms == 1 ? 64 : 32;  // tokens
  static constexpr int most_columns = 128;
  static constexpr int slices = ceil_div(Config::value_dim, most_columns);
  static constexpr int columns = round_up(ceil_div(Config::value_dim, slices), 16);  // of one slice
  static constexpr int warps = columns / 16;
  static constexpr int threads = warps * 32;
  static constexpr int blocks_per_multiprocessor = warps <= 4 ? 2 : 1;
  static constexpr std::int64_t scratch_bytes = 0;

 private:
  using InputTile = TermTile<terms, chunk, round_up(Map::input_dim, 16)>;
  using ValueTile = TermTile<terms, chunk, columns>;
  using FeatureTile = TermTile<terms, chunk, rows>;
  using ScoreTile = TermTile<terms, chunk, chunk>;

  /// Keys and values are read one chunk ahead, queries one step (chunk and query head) ahead.
  static constexpr int stages = 2;
  static constexpr int bfloat16_elements =
      stages * (2 * InputTile::elements + ValueTile::elements) + 2 * FeatureTile::elements + ScoreTile::elements;
  static constexpr int float_elements = rows + 2 * chunk;

 public:
  static constexpr std::size_t shared_bytes = sizeof(__nv_bfloat16) * bfloat16_elements + sizeof(float) * float_elements;

  __device__ MmaEngine(const PrefillArgs<Config>& args, void* shared, void* /*scratch*/, int slice)
      : args_(args), first_column_(slice * columns), first_slice_(slice == 0) {
    auto* next = static_cast<__nv_bfloat16*>(shared);
    const auto take = [&](auto& tile, int count) {
      tile.data = next;
      next += count * std::remove_reference_t<decltype(tile)>::elements;
    };
    take(keys_, stages);
    take(queries_, stages);
    take(values_, stages);
    take(key_features_, 1);
    take(query_features_, 1);
    take(scores_, 1);
    normaliser_ = reinterpret_cast<float*>(next);
    score_sums_ = normaliser_ + rows;
    factors_ = score_sums_ + chunk;
  }

  /// As SimtEngine::for_state.
  template <class Function>
  __device__ void for_state(const Function& function) {
#pragma unroll
    for (int tile = 0; tile < rows / 8; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int c = first_column_ + 16 * warp() + lane() / 4 + i / 2 * 8;
        const int r = 8 * tile + lane() % 4 * 2 + i % 2;
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
      expand_tokens<Side::key>(keys_.stage(stage), key_features_, source.span, begin, tokens_from(range, begin));
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
        if (!full && g == 0) {
          expand_tokens<Side::key>(keys_.stage(stage), key_features_, source.span, begin, tokens);
        }
        expand_tokens<Side::query>(queries_.stage(step), query_features_, source.span, begin, tokens);
        if constexpr (!full) {
          if constexpr (!Map::has_closed_form) {
            __syncthreads();
          }
          score(stage, step);
        }
        __syncthreads();
        normalise();
        answer(stage);
        __syncthreads();
        write(source.span, begin, tokens, source.head * group + g);
      }
      if constexpr (!full) {
        update(stage);
      }
    }
    __pipeline_wait_prior(0);
    __syncthreads();
  }

 private:
  static constexpr bool full = Config::Mask::reads_future;
  static constexpr int token_tiles = chunk / 16;

  static __device__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ int warp() { return static_cast<int>(threadIdx.x) / 32; }
  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }

  static __device__ int tokens_from(const TokenRange& range, std::int64_t begin) {
    return static_cast<int>(clamped(range.end - begin, 0, chunk));
  }

  /// The last chunk asked for is there, and everyone is done with the one before.
  static __device__ void await() {
    __pipeline_wait_prior(0);
    __syncthreads();
  }

  __device__ void read_keys(const KeySource<Element>& source, const TokenRange& range, std::int64_t begin, int stage) {
    const int tokens = tokens_from(range, begin);
    if (tokens == 0) {
      return;
    }
    const auto& key = source.key;
    const auto& value = source.value;
    read_rows<chunk>(keys_.stage(stage), tokens, source.zero_keys - begin, Map::input_dim,
                     rows_aligned(key.data, key.batch_stride, key.token_stride, key.head_stride), key.data,
                     [&](int t) { return source.key_row(begin + t); });
    read_rows<chunk>(values_.stage(stage), tokens, 0, Format::columns - first_column_,
                     rows_aligned(value.data, value.batch_stride, value.token_stride, value.head_stride), value.data,
                     [&](int t) { return source.value_row(begin + t) + first_column_; });
  }

  __device__ void read_queries(const SequenceSpan& span, const TokenRange& range, std::int64_t begin, std::int64_t head,
                               int step) {
    const int tokens = tokens_from(range, begin);
    if (tokens == 0) {
      return;
    }
    const auto& query = args_.query;
    read_rows<chunk>(queries_.stage(step), tokens, 0, Map::input_dim,
                     rows_aligned(query.data, query.batch_stride, query.token_stride, query.head_stride), query.data,
                     [&](int t) { return query.row(span.batch_row, span.first_token + begin + t, head); });
  }

  /// Features of a tile of tokens; those of tokens that are not there are 0.
  template <Side side>
  __device__ void expand_tokens(const InputTile& inputs, const FeatureTile& features, const SequenceSpan& span,
                                std::int64_t begin, int tokens) {
    // Keys are the first threads' work, queries the last ones', so that with enough threads both are done at once.
    const int first = side == Side::key ? thread() : threads - 1 - thread();
    for (int t = first; t < chunk; t += threads) {
      float x[InputTile::columns];
#pragma unroll
      for (int c = 0; c < InputTile::columns; c += 8) {
        inputs.load(t, c, x + c);
      }
      if (t < tokens) {
        expand_to<side, rows>(args_.feature_map, x, span.position(begin + t),
                              [&](int r, const float(&numbers)[8]) { features.store(t, r, numbers); });
      } else {
        for (int r = 0; r < rows; r += 8) {
          features.store(t, r, {});
        }
      }
    }
  }

  /// P[t][j] = φ(q_t)·φ(k_j) for j <= t, else 0, and the sums of its rows. A warp takes 16 tokens.
  __device__ void score(int stage, int step) {
    for (int m = warp(); m < token_tiles; m += warps) {
      float row_sums[2] = {0, 0};
      for (int n = 0; n <= m; ++n) {
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
              *reinterpret_cast<Pair*>(scores_.at(term, t, j)) = rounded.pairs[term];
            }
            // The sum of what the values are weighted with: then rounding moves weight, but adds none.
            const float2 used = rounded.sum();
            row_sums[i / 2] += used.x + used.y;
          }
        }
      }
      using Reduce = cub::WarpReduce<float, 4>;
      typename Reduce::TempStorage storage;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float total = Reduce(storage).Sum(row_sums[i]);
        if (lane() % 4 == 0) {
          score_sums_[16 * m + lane() / 4 + i * 8] = total;
        }
      }
    }
  }

  /// 16 queries by 16 keys.
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

  /// factors[t] from φ(q_t)·z and the sums of scores; a few neighbouring lanes share a token.
  __device__ void normalise() {
    constexpr int lanes = 4;
    using Reduce = cub::WarpReduce<float, lanes>;
    typename Reduce::TempStorage storage;
    for (int first = 0; first < chunk; first += threads / lanes) {
      const int t = first + thread() / lanes;
      const int part = thread() % lanes;
      float sum = 0;
      if (Config::Normaliser::uses_denominator && t < chunk) {
        for (int r = part * 8; r < rows; r += lanes * 8) {
          float features[8];
          query_features_.load(t, r, features);
          const auto z = load_vector<8>(normaliser_ + r);
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            sum += features[e] * z[e];
          }
        }
      }
      sum = Reduce(storage).Sum(sum);
      if (part == 0 && t < chunk) {
        factors_[t] = Config::Normaliser::factor(Config::Normaliser::uses_denominator && !full ? sum + score_sums_[t] : sum);
      }
    }
  }

  /// outputs = φ(q)·S + P·v, not normalised.
  __device__ void answer(int stage) {
#pragma unroll
    for (int m = 0; m < token_tiles; ++m) {
      outputs_[m][0] = {};
      outputs_[m][1] = {};
    }
#pragma unroll
    for (int tile = 0; tile < rows / 8; tile += 2) {
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
          left[term] = load_left(query_features_.at(term, 16 * m, 8 * tile), FeatureTile::stride, lane());
        }
        multiply_terms(outputs_[m][0], left, state[0]);
        multiply_terms(outputs_[m][1], left, state[1]);
      }
    }
    if constexpr (!full) {
#pragma unroll
      for (int n = 0; n < token_tiles; ++n) {
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

  /// This warp's 16 columns of 16 tokens of v as right operands.
  __device__ void load_values(RightFragment (&value)[2][terms], int stage, int n) {
#pragma unroll
    for (int term = 0; term < terms; ++term) {
      RightFragment both[2];
      load_right(both, values_.stage(stage).at(term, 16 * n, 16 * warp()), ValueTile::stride, lane());
      value[0][term] = both[0];
      value[1][term] = both[1];
    }
  }

  __device__ void write(const SequenceSpan& span, std::int64_t begin, int tokens, std::int64_t head) {
    const auto& output = args_.output;
    const bool pairs_aligned = rows_aligned_to_pairs(output);
#pragma unroll
    for (int m = 0; m < token_tiles; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int t = 16 * m + lane() / 4 + i * 8;
        if (t >= tokens) {
          continue;
        }
        const float factor = factors_[t];
        Element* const row = output.row(span.batch_row, span.first_token + begin + t, head) + first_column_;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const int column = 16 * warp() + 8 * n + lane() % 4 * 2;
          const int room = Format::columns - first_column_ - column;
          const Vector<Element, 2> pair{{convert<Element>(outputs_[m][n].values[2 * i] * factor),
                                         convert<Element>(outputs_[m][n].values[2 * i + 1] * factor)}};
          if (pairs_aligned && room >= 2) {
            store_vector(row + column, pair);
          } else {
            for (int e = 0; e < 2 && e < room; ++e) {
              row[column + e] = pair[e];
            }
          }
        }
      }
    }
  }

  static __device__ bool rows_aligned_to_pairs(const TensorView<Element>& output) {
    return reinterpret_cast<std::uintptr_t>(output.data) % sizeof(Pair) == 0 &&
           (output.batch_stride | output.token_stride | output.head_stride) % 2 == 0;
  }

  /// S += φ(k)vᵀ, z += φ(k). A chunk's products are summed by themselves and added in one step: the matrix unit truncates
  /// where an addition rounds, and over a million tokens that would show.
  __device__ void update(int stage) {
    LeftFragment value[token_tiles][terms];
#pragma unroll
    for (int k = 0; k < token_tiles; ++k) {
#pragma unroll
      for (int term = 0; term < terms; ++term) {
        value[k][term] =
            load_left_transposed(values_.stage(stage).at(term, 16 * k, 16 * warp()), ValueTile::stride, lane());
      }
    }
#pragma unroll
    for (int tile = 0; tile < rows / 8; tile += 2) {
      Accumulator sums[2] = {};
#pragma unroll
      for (int k = 0; k < token_tiles; ++k) {
        RightFragment features[2][terms];
#pragma unroll
        for (int term = 0; term < terms; ++term) {
          RightFragment both[2];
          load_right(both, key_features_.at(term, 16 * k, 8 * tile), FeatureTile::stride, lane());
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
    for (int r = 2 * thread(); r < rows; r += 2 * threads) {
      float2 sum = {0, 0};
      for (int t = 0; t < chunk; ++t) {
        Terms<terms> pair;
#pragma unroll
        for (int term = 0; term < terms; ++term) {
          pair.pairs[term] = *reinterpret_cast<const Pair*>(key_features_.at(term, t, r));
        }
        const float2 features = pair.sum();
        sum.x += features.x;
        sum.y += features.y;
      }
      normaliser_[r] += sum.x;
      normaliser_[r + 1] += sum.y;
    }
  }

  const PrefillArgs<Config>& args_;
  int first_column_;
  bool first_slice_;
  InputTile keys_;     // stages of them, like the next two
  InputTile queries_;
  ValueTile values_;
  FeatureTile key_features_;
  FeatureTile query_features_;
  ScoreTile scores_;
  float* normaliser_;   // [rows]
  float* score_sums_;   // [chunk]
  float* factors_;      // [chunk]
  Accumulator state_[rows / 8];           // Sᵀ: this warp's 16 columns, 8 rows each
  Accumulator outputs_[token_tiles][2];  // 16 tokens, 2 x 8 columns
};

}  // namespace jrt::detail::cuda
