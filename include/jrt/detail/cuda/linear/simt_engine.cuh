// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/core/warp_sum.cuh"
#include "jrt/detail/cuda/linear/expand.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/shared/linear/denominators.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/mixer/linear_attention.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Sizes of a block's arrays, in elements of T. Arrays that do not fit in the shared memory of every GPU from sm_80 on go
/// to the workspace, a slice per block: the state, the features, or both.
template <class Config>
struct SimtLayout {
  using T = ConfigCompute<Config>;
  using Map = typename Config::FeatureMap;
  static constexpr int chunk = simt_prefill_tuning.chunk;
  static constexpr int slices = ceil_div(Config::value_dim, simt_prefill_tuning.max_columns);
  static constexpr int columns = round_up(ceil_div(Config::value_dim, slices), 4);  // of one slice
  static constexpr int rows = round_up(Map::feature_dim, 4);

  // An odd number of 16-byte accesses, so that a column of rows touches all banks.
  static constexpr int feature_stride = rows / 4 % 2 == 1 ? rows : rows + 4;
  static constexpr int input_stride = Map::input_dim | 1;
  static constexpr int score_stride = chunk + 1;

  static constexpr std::int64_t feature_elements = std::int64_t{2} * chunk * feature_stride;
  static constexpr std::int64_t state_elements = std::int64_t{rows} * columns;
  static constexpr std::int64_t value_elements = chunk * columns;
  static constexpr std::int64_t input_elements = round_up(2 * chunk * input_stride, 4);
  static constexpr std::int64_t score_elements = round_up(chunk * score_stride, 4);
  static constexpr std::int64_t small_elements = value_elements + input_elements + score_elements + rows + chunk;

  // 1 KiB is left for what the compiler places there.
  static constexpr std::int64_t shared_limit = static_cast<std::int64_t>((shared_bytes_everywhere - 1024) / sizeof(T));
  static constexpr bool state_shared = small_elements + state_elements <= shared_limit;
  static constexpr bool features_shared =
      small_elements + (state_shared ? state_elements : 0) + feature_elements <= shared_limit;

  static constexpr std::int64_t shared_elements =
      small_elements + (state_shared ? state_elements : 0) + (features_shared ? feature_elements : 0);
  static constexpr std::int64_t scratch_elements =
      (state_shared ? 0 : state_elements) + (features_shared ? 0 : feature_elements);
  static_assert(small_elements <= shared_limit,
                "jrt CUDA backend: one chunk of this operator does not fit in shared memory; use a smaller input_dim or "
                "feature_dim.");
};

/// Prefill of one head's tokens by one block on the ordinary arithmetic units, in the compute type: for every type, feature
/// map and dimension. Products are formed in patches of a few rows by four columns per thread, out of shared memory.
template <AttentionConfig Config>
class SimtEngine {
 public:
  using Layout = SimtLayout<Config>;
  using T = typename Layout::T;
  using Map = typename Config::FeatureMap;
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  static constexpr int threads = simt_prefill_tuning.threads;
  static constexpr int blocks_per_multiprocessor =
      sizeof(T) == 4 ? simt_prefill_tuning.float_blocks : simt_prefill_tuning.double_blocks;
  static constexpr int chunk = Layout::chunk;
  static constexpr int slices = Layout::slices;
  static constexpr bool slices_need_partials = slices > 1;
  static constexpr std::size_t shared_bytes = static_cast<std::size_t>(Layout::shared_elements) * sizeof(T);
  static constexpr std::int64_t scratch_bytes = Layout::scratch_elements * static_cast<std::int64_t>(sizeof(T));

  /// `shared` and `scratch` are this block's; `slice` selects the columns of v.
  __device__ SimtEngine(const PrefillArgs<Config>& args, void* shared, void* scratch, int slice)
      : args_(args), first_column_(slice * Layout::columns), first_slice_(slice == 0) {
    T* next = static_cast<T*>(shared);
    T* far = static_cast<T*>(scratch);
    const auto take = [](T*& from, std::int64_t elements) {
      T* const taken = from;
      from += elements;
      return taken;
    };
    values_ = take(next, Layout::value_elements);
    key_inputs_ = take(next, Layout::input_elements);
    query_inputs_ = key_inputs_ + chunk * Layout::input_stride;
    scores_ = take(next, Layout::score_elements);
    normaliser_ = take(next, Layout::rows);
    factors_ = take(next, chunk);
    state_ = take(Layout::state_shared ? next : far, Layout::state_elements);
    key_features_ = take(Layout::features_shared ? next : far, Layout::feature_elements);
    query_features_ = key_features_ + chunk * Layout::feature_stride;
  }

  /// Calls `function(index in the state format, value, written)` for all of this block's values of S and z; `written` says
  /// whether this block writes the value out.
  template <class Function>
  __device__ void for_state(const Function& function) {
    for (int i = thread(); i < Layout::state_elements; i += threads) {
      const int r = i / Layout::columns;
      const int c = first_column_ + i % Layout::columns;
      if (r < Format::rows && c < Format::columns) {
        function(std::int64_t{r} * Format::columns + c, state_[i], true);
      } else {
        state_[i] = T(0);
      }
    }
    for (int r = thread(); r < Layout::rows; r += threads) {
      if (r < Format::rows) {
        function(Format::normaliser_offset + r, normaliser_[r], first_slice_);
      } else {
        normaliser_[r] = T(0);
      }
    }
  }

  /// S += Σ φ(k)vᵀ, z += Σ φ(k) over a range of tokens.
  template <class Source>
  __device__ void accumulate(const Source& source, const TokenRange& range) {
    for (std::int64_t begin = range.begin; begin < range.end; begin += chunk) {
      const int tokens = tokens_from(range, begin);
      __syncthreads();
      const int tokens_without_key = tokens_without_key_in(source, begin, tokens);
      read_keys(source, begin, tokens, tokens_without_key);
      __syncthreads();
      expand_keys(source, begin, tokens, tokens_without_key);
      __syncthreads();
      update(tokens);
    }
    __syncthreads();
  }

  /// Outputs of a range of tokens of all query heads of the source's head; unless the mask reads all tokens, each chunk is
  /// then added to the state.
  template <class Source>
  __device__ void outputs(const Source& source, const TokenRange& range) {
    const std::int64_t group = args_.query.heads / args_.key.heads;
    for (std::int64_t begin = range.begin; begin < range.end; begin += chunk) {
      const int tokens = tokens_from(range, begin);
      const int tokens_without_key = tokens_without_key_in(source, begin, tokens);
      for (std::int64_t g = 0; g < group; ++g) {
        const std::int64_t head = source.head * group + g;
        __syncthreads();
        if (!full && g == 0) {
          read_keys(source, begin, tokens, tokens_without_key);
        }
        read_queries(source.span, begin, tokens, head);
        __syncthreads();
        if (!full && g == 0) {
          expand_keys(source, begin, tokens, tokens_without_key);
        }
        expand_vectors<Side::query>(args_.feature_map, query_inputs_, Layout::input_stride, query_features_,
                                    Layout::feature_stride, Layout::rows, tokens,
                                    [&](int t) { return source.span.position(begin + t); });
        __syncthreads();
        if constexpr (!full) {
          score(tokens, tokens_without_key);
          __syncthreads();
        }
        normalise(source.span, begin, tokens, head);
        __syncthreads();
        write_outputs(source.span, begin, tokens, head);
      }
      if constexpr (!full) {
        __syncthreads();
        update(tokens);
      }
    }
    __syncthreads();
  }

 private:
  static constexpr bool full = Config::Mask::reads_future;
  static constexpr int patch_columns = Layout::columns / 4;

  static __device__ int thread() { return static_cast<int>(threadIdx.x); }

  static __device__ int tokens_from(const TokenRange& range, std::int64_t begin) {
    return static_cast<int>(smaller<std::int64_t>(chunk, range.end - begin));
  }

  /// Leading tokens of a chunk without a key; only where keys come from a window. Their inputs, features, values and scores
  /// are 0.
  template <class Source>
  static __device__ int tokens_without_key_in(const Source& source, std::int64_t begin, int tokens) {
    if constexpr (requires { source.tokens_without_key_in(TokenRange{}); }) {
      return source.tokens_without_key_in({begin, begin + tokens});
    } else {
      return 0;
    }
  }

  template <class Source>
  __device__ void read_keys(const Source& source, std::int64_t begin, int tokens, int tokens_without_key) {
    for (int i = thread(); i < tokens * Map::input_dim; i += threads) {
      const int t = i / Map::input_dim;
      const int c = i % Map::input_dim;
      key_inputs_[t * Layout::input_stride + c] =
          t < tokens_without_key || begin + t < source.zero_keys ? T(0) : convert<T>(source.key_row(begin + t)[c]);
    }
    for (int i = thread(); i < tokens * Layout::columns; i += threads) {
      const int column = first_column_ + i % Layout::columns;
      const int t = i / Layout::columns;
      values_[i] =
          column < Format::columns && t >= tokens_without_key ? convert<T>(source.value_row(begin + t)[column]) : T(0);
    }
  }

  __device__ void read_queries(const SequenceSpan& span, std::int64_t begin, int tokens, std::int64_t head) {
    for (int i = thread(); i < tokens * Map::input_dim; i += threads) {
      const int t = i / Map::input_dim;
      const int c = i % Map::input_dim;
      query_inputs_[t * Layout::input_stride + c] =
          convert<T>(args_.query.row(span.batch_row, span.first_token + begin + t, head)[c]);
    }
  }

  template <class Source>
  __device__ void expand_keys(const Source& source, std::int64_t begin, int tokens, int tokens_without_key) {
    for (int i = thread(); i < tokens_without_key * Layout::rows; i += threads) {
      key_features_[i / Layout::rows * Layout::feature_stride + i % Layout::rows] = T(0);
    }
    expand_vectors<Side::key>(args_.feature_map, key_inputs_ + tokens_without_key * Layout::input_stride,
                              Layout::input_stride, key_features_ + tokens_without_key * Layout::feature_stride,
                              Layout::feature_stride, Layout::rows, tokens - tokens_without_key,
                              [&](int t) { return source.span.position(begin + tokens_without_key + t); });
  }

  /// scores[t][j] = φ(q_t)·φ(k_j) for j <= t, else 0.
  __device__ void score(int tokens, int tokens_without_key) {
    for (int i = thread(); i < chunk * chunk; i += threads) {
      const int t = i / chunk;
      const int j = i % chunk;
      T sum = 0;
      if (t < tokens && j <= t && j >= tokens_without_key) {
        if constexpr (Map::has_closed_form) {
          const T* const q = query_inputs_ + t * Layout::input_stride;
          const T* const k = key_inputs_ + j * Layout::input_stride;
          for (int c = 0; c < Map::input_dim; ++c) {
            sum += q[c] * k[c];
          }
          sum = args_.feature_map.kernel(sum);
        } else {
          for (int r = 0; r < Layout::rows; r += 4) {
            const auto q = load_vector<4>(query_features_ + t * Layout::feature_stride + r);
            const auto k = load_vector<4>(key_features_ + j * Layout::feature_stride + r);
            for (int e = 0; e < 4; ++e) {
              sum += q[e] * k[e];
            }
          }
        }
      }
      scores_[t * Layout::score_stride + j] = sum;
    }
  }

  /// factors[t] from φ(q_t)·z and the scores; a few neighbouring lanes share a token.
  __device__ void normalise(const SequenceSpan& span, std::int64_t begin, int tokens, std::int64_t head) {
    constexpr int lanes = threads / chunk;
    const int t = thread() / lanes;
    const int lane = thread() % lanes;
    T sum = 0;
    if (Config::Normaliser::uses_denominator && t < tokens) {
      for (int r = lane; r < Layout::rows; r += lanes) {
        sum += query_features_[t * Layout::feature_stride + r] * normaliser_[r];
      }
      for (int j = lane; !full && j <= t; j += lanes) {
        sum += scores_[t * Layout::score_stride + j];
      }
    }
    sum = warp_sum<lanes>(sum);
    if (lane == 0) {
      factors_[t] = Config::Normaliser::factor(sum);
      if (has_denominators<Config> && t < tokens && first_slice_) {
        store_denominator(args_.denominators, span.batch_row, span.first_token + begin + t, head, sum);
      }
    }
  }

  /// y = (φ(q)ᵀS + scores·V)·factor, patches of 2 tokens by 4 columns.
  __device__ void write_outputs(const SequenceSpan& span, std::int64_t begin, int tokens, std::int64_t head) {
    for (int patch = thread(); patch < chunk / 2 * patch_columns; patch += threads) {
      const int column = patch % patch_columns * 4;
      const int t = patch / patch_columns * 2;
      if (t >= tokens) {
        break;
      }
      T sums[2][4] = {};
      const T* const q = query_features_ + t * Layout::feature_stride;
      const T* const next = t + 1 < tokens ? q + Layout::feature_stride : q;  // the last row may stand alone
      for (int r = 0; r < Layout::rows; r += 4) {
        const Vector<T, 4> features[2] = {load_vector<4>(q + r), load_vector<4>(next + r)};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const auto state = load_vector<4>(state_ + (r + k) * Layout::columns + column);
          add_patch_row(sums, features[0][k], features[1][k], state);
        }
      }
      for (int j = 0; !full && j < t + 2 && j < tokens; ++j) {
        add_patch_row(sums, scores_[t * Layout::score_stride + j], scores_[(t + 1) * Layout::score_stride + j],
                      load_vector<4>(values_ + j * Layout::columns + column));
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (t + i < tokens) {
          Element* const output =
              args_.output.row(span.batch_row, span.first_token + begin + t + i, head) + first_column_ + column;
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            if (first_column_ + column + c < Format::columns) {
              output[c] = convert<Element>(sums[i][c] * factors_[t + i]);
            }
          }
        }
      }
    }
  }

  static __device__ void add_patch_row(T (&sums)[2][4], T first, T second, const Vector<T, 4>& row) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      sums[0][c] += first * row[c];
      sums[1][c] += second * row[c];
    }
  }

  /// S += φ(k)vᵀ in patches of 4 rows by 4 columns; z += φ(k).
  __device__ void update(int tokens) {
    for (int patch = thread(); patch < Layout::rows / 4 * patch_columns; patch += threads) {
      const int row = patch / patch_columns * 4;
      const int column = patch % patch_columns * 4;
      Vector<T, 4> sums[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[i] = load_vector<4>(state_ + (row + i) * Layout::columns + column);
      }
#pragma unroll 4
      for (int t = 0; t < tokens; ++t) {
        const auto feature = load_vector<4>(key_features_ + t * Layout::feature_stride + row);
        const auto value = load_vector<4>(values_ + t * Layout::columns + column);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            sums[i][c] += feature[i] * value[c];
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        store_vector(state_ + (row + i) * Layout::columns + column, sums[i]);
      }
    }
    for (int r = thread(); r < Layout::rows; r += threads) {
      T sum = normaliser_[r];
      for (int t = 0; t < tokens; ++t) {
        sum += key_features_[t * Layout::feature_stride + r];
      }
      normaliser_[r] = sum;
    }
  }

  const PrefillArgs<Config>& args_;
  int first_column_;
  bool first_slice_;
  T* values_;          // [chunk][columns]
  T* key_inputs_;      // [chunk][input_stride]
  T* query_inputs_;    // [chunk][input_stride]
  T* scores_;          // [chunk][score_stride]
  T* normaliser_;      // [rows]
  T* factors_;         // [chunk]
  T* state_;           // [rows][columns]
  T* key_features_;    // [chunk][feature_stride]
  T* query_features_;  // [chunk][feature_stride]
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
