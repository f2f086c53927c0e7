// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/core/warp_sum.cuh"
#include "jrt/detail/cuda/linear/expand.cuh"
#include "jrt/detail/cuda/linear/simt_gradient_layout.cuh"
#include "jrt/detail/plan/token_range.hpp"
#include "jrt/detail/shared/linear/denominators.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/sequences.hpp"
#include "jrt/tensor_view.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Where the gradients of a head's keys and values go; either view may be empty.
template <class Element>
struct KeyGradients {
  TensorView<Element> key;
  TensorView<Element> value;
};

/// The passes of the backward pass over one head's tokens by one block, on the ordinary arithmetic units, in the compute
/// type: for every type, feature map and dimension. The state is S or R, as the pass needs it; both have the last column
/// (z, or the gradient of it) apart. Products are formed in patches of a few rows by four columns per thread.
template <AttentionConfig Config>
class SimtGradients {
 public:
  using Layout = SimtGradientLayout<Config>;
  using T = typename Layout::T;
  using Map = typename Config::FeatureMap;
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  static constexpr int threads = simt_gradient_tuning.threads;
  static constexpr int chunk = Layout::chunk;
  static constexpr std::size_t shared_bytes = static_cast<std::size_t>(Layout::shared_elements) * sizeof(T);
  static constexpr std::int64_t scratch_bytes = Layout::scratch_elements * static_cast<std::int64_t>(sizeof(T));

  /// `shared` and `scratch` are this block's.
  __device__ SimtGradients(const BackwardArgs<Config>& args, void* shared, void* scratch) : args_(args) {
    T* next = static_cast<T*>(shared);
    T* far = static_cast<T*>(scratch);
    const auto take = [](T*& from, std::int64_t elements) {
      T* const taken = from;
      from += elements;
      return taken;
    };
    values_ = take(next, chunk * Layout::value_stride);
    gradient_ = take(next, chunk * Layout::value_stride);
    values_gradient_ = take(next, chunk * Layout::value_stride);
    last_column_ = take(next, Layout::rows);
    denominator_gradient_ = take(next, chunk);
    key_inputs_ = take(next, round_up(3 * chunk * Layout::input_stride, 4));
    query_inputs_ = key_inputs_ + chunk * Layout::input_stride;
    inputs_gradient_ = query_inputs_ + chunk * Layout::input_stride;
    weights_ = take(next, round_up(2 * chunk * Layout::score_stride, 4));
    pairs_gradient_ = weights_ + chunk * Layout::score_stride;
    state_ = take(Layout::state_shared ? next : far, Layout::state_elements);
    T*& features = Layout::features_shared ? next : far;
    key_features_ = take(features, Layout::feature_elements(chunk));
    features_gradient_ = take(features, Layout::feature_elements(chunk));
    query_features_ = Map::has_closed_form ? key_features_ : take(features, Layout::feature_elements(chunk));
  }

  /// Calls `function(index in the state format, value)` for all values of the state.
  template <class Function>
  __device__ void for_state(const Function& function) {
    __syncthreads();
    for (int i = thread(); i < Layout::state_elements; i += threads) {
      const int r = i / Layout::columns;
      const int c = i % Layout::columns;
      if (r < Format::rows && c < Format::columns) {
        function(std::int64_t{r} * Format::columns + c, state_[i]);
      } else {
        state_[i] = T(0);
      }
    }
    for (int r = thread(); r < Layout::rows; r += threads) {
      if (r < Format::rows) {
        function(Format::normaliser_offset + r, last_column_[r]);
      } else {
        last_column_[r] = T(0);
      }
    }
    __syncthreads();
  }

  /// S += Σ φ(k)vᵀ over a range, with z.
  __device__ void add_keys(const KeySource<Element>& source, const TokenRange& range) {
    for (std::int64_t begin = range.begin; begin < range.end; begin += chunk) {
      const int tokens = tokens_from(range, begin);
      read_keys(source, begin, tokens);
      __syncthreads();
      expand<Side::key>(key_inputs_, key_features_, source.span, begin, tokens);
      __syncthreads();
      update(key_features_, values_, nullptr, tokens);
      __syncthreads();
    }
  }

  /// R += Σ φ(q)gᵀ over a range and all query heads of a key/value head, in the order of the key pass.
  __device__ void add_queries(const SequenceSpan& span, const TokenRange& range, std::int64_t head) {
    const std::int64_t group = args_.query.heads / args_.key.heads;
    for (std::int64_t begin = last_chunk(range); begin >= range.begin; begin -= chunk) {
      const int tokens = tokens_from(range, begin);
      for (std::int64_t h = head * group; h < (head + 1) * group; ++h) {
        read_queries(span, begin, tokens, h);
        __syncthreads();
        expand<Side::query>(query_inputs_, query_features_, span, begin, tokens);
        __syncthreads();
        update(query_features_, gradient_, denominator_gradient_, tokens);
        __syncthreads();
      }
    }
  }

  /// Gradients of queries from S before the range, which becomes S after it unless the mask reads all tokens.
  __device__ void query_pass(const KeySource<Element>& source, const TokenRange& range) {
    const std::int64_t group = args_.query.heads / args_.key.heads;
    for (std::int64_t begin = range.begin; begin < range.end; begin += chunk) {
      const int tokens = tokens_from(range, begin);
      if constexpr (!full) {
        read_keys(source, begin, tokens);
        __syncthreads();
        expand<Side::key>(key_inputs_, key_features_, source.span, begin, tokens);
      }
      for (std::int64_t h = source.head * group; h < (source.head + 1) * group; ++h) {
        read_queries(source.span, begin, tokens, h);
        clear_inputs_gradient();
        __syncthreads();
        if constexpr (!full) {
          pair(tokens);
        }
        multiply_state(gradient_, denominator_gradient_, tokens);
        __syncthreads();
        if constexpr (!full) {
          if constexpr (Map::has_closed_form) {
            add_pairs(inputs_gradient_, Layout::input_stride, Map::input_dim, key_inputs_, Layout::input_stride, tokens,
                      false);
          } else {
            add_pairs(features_gradient_, Layout::feature_stride, Layout::rows, key_features_, Layout::feature_stride,
                      tokens, false);
          }
          __syncthreads();
        }
        pull_back<Side::query>(query_inputs_, source.span, begin, tokens);
        __syncthreads();
        write(args_.query_gradient, inputs_gradient_, Layout::input_stride, source.span.batch_row,
              source.span.first_token + begin, tokens, h, 0);
        __syncthreads();
      }
      if constexpr (!full) {
        update(key_features_, values_, nullptr, tokens);
        __syncthreads();
      }
    }
  }

  /// Gradients of keys and values, last chunk first, from R after the range, which becomes R before it `with_queries`. The
  /// encoder region has no queries of its own, and neither has a mask that reads all tokens: their R is the whole sum.
  __device__ void key_pass(const KeySource<Element>& source, const TokenRange& range, bool with_queries,
                           const KeyGradients<Element>& to) {
    const std::int64_t group = args_.query.heads / args_.key.heads;
    for (std::int64_t begin = last_chunk(range); begin >= range.begin; begin -= chunk) {
      const int tokens = tokens_from(range, begin);
      read_keys(source, begin, tokens);
      clear_inputs_gradient();
      __syncthreads();
      expand<Side::key>(key_inputs_, key_features_, source.span, begin, tokens);
      multiply_state(values_, nullptr, tokens);
      __syncthreads();
      multiply_features(tokens);
      __syncthreads();
      for (std::int64_t h = source.head * group; with_queries && h < (source.head + 1) * group; ++h) {
        read_queries(source.span, begin, tokens, h);
        __syncthreads();
        if constexpr (!Map::has_closed_form) {
          expand<Side::query>(query_inputs_, query_features_, source.span, begin, tokens);
          __syncthreads();
        }
        pair(tokens);
        __syncthreads();
        add_weighted_gradients(tokens);
        if constexpr (Map::has_closed_form) {
          add_pairs(inputs_gradient_, Layout::input_stride, Map::input_dim, query_inputs_, Layout::input_stride, tokens,
                    true);
          expand<Side::query>(query_inputs_, query_features_, source.span, begin, tokens);
        } else {
          add_pairs(features_gradient_, Layout::feature_stride, Layout::rows, query_features_, Layout::feature_stride,
                    tokens, true);
        }
        __syncthreads();
        update(query_features_, gradient_, denominator_gradient_, tokens);
        __syncthreads();
      }
      pull_back<Side::key>(key_inputs_, source.span, begin, tokens);
      __syncthreads();
      const auto zero_keys = static_cast<int>(clamped(source.zero_keys - begin, 0, chunk));
      write(to.key, inputs_gradient_, Layout::input_stride, source.row, source.first + begin, tokens, source.head,
            zero_keys);
      write(to.value, values_gradient_, Layout::value_stride, source.row, source.first + begin, tokens, source.head, 0);
      __syncthreads();
    }
  }

 private:
  static constexpr bool full = Config::Mask::reads_future;
  static constexpr int patch_columns = Layout::columns / 4;

  static __device__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ int tokens_from(const TokenRange& range, std::int64_t begin) {
    return static_cast<int>(smaller<std::int64_t>(chunk, range.end - begin));
  }
  static __device__ std::int64_t last_chunk(const TokenRange& range) {
    return range.begin + (ceil_div<std::int64_t>(range.size(), chunk) - 1) * chunk;
  }

  __device__ void read_keys(const KeySource<Element>& source, std::int64_t begin, int tokens) {
    for (int i = thread(); i < tokens * Map::input_dim; i += threads) {
      const int t = i / Map::input_dim;
      const int c = i % Map::input_dim;
      const bool zero = begin + t < source.zero_keys;
      key_inputs_[t * Layout::input_stride + c] = zero ? T(0) : convert<T>(source.key_row(begin + t)[c]);
    }
    for (int i = thread(); i < tokens * Layout::columns; i += threads) {
      const int t = i / Layout::columns;
      const int c = i % Layout::columns;
      values_[t * Layout::value_stride + c] = c < Format::columns ? convert<T>(source.value_row(begin + t)[c]) : T(0);
    }
  }

  /// Queries and g = [f(n) dy, f'(n)/f(n) (dy · y)]; a row of dy is read by neighbouring lanes.
  __device__ void read_queries(const SequenceSpan& span, std::int64_t begin, int tokens, std::int64_t head) {
    for (int i = thread(); i < tokens * Map::input_dim; i += threads) {
      const int t = i / Map::input_dim;
      const int c = i % Map::input_dim;
      query_inputs_[t * Layout::input_stride + c] =
          convert<T>(args_.query.row(span.batch_row, span.first_token + begin + t, head)[c]);
    }
    constexpr int lanes = 8;
    for (int t = thread() / lanes; t < round_up(tokens, 32 / lanes); t += threads / lanes) {
      const bool there = t < tokens;
      const std::int64_t token = span.first_token + begin + (there ? t : 0);
      const Element* const dy = args_.output_gradient.row(span.batch_row, token, head);
      T factor = 1;
      T last = 0;
      if constexpr (has_denominators<Config>) {
        const Element* const y = args_.output.row(span.batch_row, token, head);
        T product = 0;
        for (int c = thread() % lanes; c < Format::columns; c += lanes) {
          product += convert<T>(y[c]) * convert<T>(dy[c]);
        }
        product = warp_sum<lanes>(product);
        const T denominator = *args_.denominators.row(span.batch_row, token, head);
        factor = Config::Normaliser::factor(denominator);
        // A query that saw no key has the output 0 whatever it is: no gradient.
        last = factor == T(0) ? T(0) : Config::Normaliser::factor_derivative(denominator) / factor * product;
      }
      for (int c = thread() % lanes; there && c < Layout::columns; c += lanes) {
        gradient_[t * Layout::value_stride + c] = c < Format::columns ? convert<T>(dy[c]) * factor : T(0);
      }
      if (there && thread() % lanes == 0) {
        denominator_gradient_[t] = last;
      }
    }
  }

  template <Side side>
  __device__ void expand(const T* inputs, T* features, const SequenceSpan& span, std::int64_t begin, int tokens) {
    expand_vectors<side>(args_.feature_map, inputs, Layout::input_stride, features, Layout::feature_stride, Layout::rows,
                         tokens, [&](int t) { return span.position(begin + t); });
  }

  /// features_gradient[t] = state · [vectors[t], last[t]]; without `last`, 1 in its place. Patches of 2 tokens by 4 rows.
  __device__ void multiply_state(const T* vectors, const T* last, int tokens) {
    for (int patch = thread(); patch < chunk / 2 * (Layout::rows / 4); patch += threads) {
      const int t = patch % (chunk / 2) * 2;
      const int row = patch / (chunk / 2) * 4;
      if (t >= tokens) {
        continue;
      }
      const int next = t + 1 < tokens ? t + 1 : t;
      T sums[2][4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        sums[0][k] = last_column_[row + k] * (last != nullptr ? last[t] : T(1));
        sums[1][k] = last_column_[row + k] * (last != nullptr ? last[next] : T(1));
      }
      for (int c = 0; c < Layout::columns; c += 4) {
        const auto first_vector = load_vector<4>(vectors + t * Layout::value_stride + c);
        const auto second_vector = load_vector<4>(vectors + next * Layout::value_stride + c);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const auto state = load_vector<4>(state_ + (row + k) * Layout::columns + c);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            sums[0][k] += state[e] * first_vector[e];
            sums[1][k] += state[e] * second_vector[e];
          }
        }
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        features_gradient_[t * Layout::feature_stride + row + k] = sums[0][k];
        if (next != t) {
          features_gradient_[next * Layout::feature_stride + row + k] = sums[1][k];
        }
      }
    }
  }

  /// values_gradient = φ(k)ᵀR, patches of 2 tokens by 4 columns.
  __device__ void multiply_features(int tokens) {
    for (int patch = thread(); patch < chunk / 2 * patch_columns; patch += threads) {
      const int column = patch % patch_columns * 4;
      const int t = patch / patch_columns * 2;
      if (t >= tokens) {
        break;
      }
      const int next = t + 1 < tokens ? t + 1 : t;
      T sums[2][4] = {};
      for (int r = 0; r < Layout::rows; r += 4) {
        const auto first = load_vector<4>(key_features_ + t * Layout::feature_stride + r);
        const auto second = load_vector<4>(key_features_ + next * Layout::feature_stride + r);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const auto state = load_vector<4>(state_ + (r + k) * Layout::columns + column);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            sums[0][e] += first[k] * state[e];
            sums[1][e] += second[k] * state[e];
          }
        }
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        values_gradient_[t * Layout::value_stride + column + e] = sums[0][e];
        if (next != t) {
          values_gradient_[next * Layout::value_stride + column + e] = sums[1][e];
        }
      }
    }
  }

  /// For queries i and keys j <= i of the chunk: weights[i][j] and pairs_gradient[i][j] = g_i · [v_j, 1], with a closed
  /// form times the kernel's derivative.
  __device__ void pair(int tokens) {
    for (int index = thread(); index < chunk * chunk; index += threads) {
      const int i = index / chunk;
      const int j = index % chunk;
      if (i >= tokens || j > i) {
        continue;
      }
      T gradient = denominator_gradient_[i];
      for (int c = 0; c < Layout::columns; c += 4) {
        const auto g = load_vector<4>(gradient_ + i * Layout::value_stride + c);
        const auto value = load_vector<4>(values_ + j * Layout::value_stride + c);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          gradient += g[e] * value[e];
        }
      }
      T weight = 0;
      if constexpr (Map::has_closed_form) {
        for (int c = 0; c < Map::input_dim; ++c) {
          weight += query_inputs_[i * Layout::input_stride + c] * key_inputs_[j * Layout::input_stride + c];
        }
        gradient *= args_.feature_map.kernel_derivative(weight);
        weight = args_.feature_map.kernel(weight);
      } else {
        for (int r = 0; r < Layout::rows; ++r) {
          weight += query_features_[i * Layout::feature_stride + r] * key_features_[j * Layout::feature_stride + r];
        }
      }
      weights_[i * Layout::score_stride + j] = weight;
      pairs_gradient_[i * Layout::score_stride + j] = gradient;
    }
  }

  /// to[t] += Σ pairs_gradient from[·]: over the keys j <= t, or `by_key` over the queries i >= t.
  __device__ void add_pairs(T* to, int to_stride, int width, const T* from, int from_stride, int tokens, bool by_key) {
    for (int index = thread(); index < tokens * width; index += threads) {
      const int t = index / width;
      const int c = index % width;
      const T* const pairs = pairs_gradient_ + t * (by_key ? 1 : Layout::score_stride);
      const int step = by_key ? Layout::score_stride : 1;
      T sum = to[t * to_stride + c];
      for (int other = by_key ? t : 0; other < (by_key ? tokens : t + 1); ++other) {
        sum += pairs[other * step] * from[other * from_stride + c];
      }
      to[t * to_stride + c] = sum;
    }
  }

  /// values_gradient[j] += Σ_{i>=j} weights[i][j] g_i.
  __device__ void add_weighted_gradients(int tokens) {
    for (int patch = thread(); patch < tokens * patch_columns; patch += threads) {
      const int j = patch / patch_columns;
      T* const to = values_gradient_ + j * Layout::value_stride + patch % patch_columns * 4;
      auto sums = load_vector<4>(to);
      for (int i = j; i < tokens; ++i) {
        const T weight = weights_[i * Layout::score_stride + j];
        const auto g = load_vector<4>(gradient_ + i * Layout::value_stride + patch % patch_columns * 4);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          sums[e] += weight * g[e];
        }
      }
      store_vector(to, sums);
    }
  }

  /// state += Σ features vectorsᵀ in patches of 4 rows by 4 columns, last column += Σ features · last (without: 1).
  __device__ void update(const T* features, const T* vectors, const T* last, int tokens) {
    for (int patch = thread(); patch < Layout::rows / 4 * patch_columns; patch += threads) {
      const int row = patch / patch_columns * 4;
      const int column = patch % patch_columns * 4;
      Vector<T, 4> sums[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[i] = load_vector<4>(state_ + (row + i) * Layout::columns + column);
      }
      for (int t = 0; t < tokens; ++t) {
        const auto feature = load_vector<4>(features + t * Layout::feature_stride + row);
        const auto vector = load_vector<4>(vectors + t * Layout::value_stride + column);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            sums[i][c] += feature[i] * vector[c];
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        store_vector(state_ + (row + i) * Layout::columns + column, sums[i]);
      }
    }
    for (int r = thread(); r < Layout::rows; r += threads) {
      T sum = last_column_[r];
      for (int t = 0; t < tokens; ++t) {
        sum += features[t * Layout::feature_stride + r] * (last != nullptr ? last[t] : T(1));
      }
      last_column_[r] = sum;
    }
  }

  __device__ void clear_inputs_gradient() {
    for (int i = thread(); i < chunk * Layout::input_stride; i += threads) {
      inputs_gradient_[i] = T(0);
    }
  }

  /// inputs_gradient[t] += J(inputs[t])ᵀ features_gradient[t].
  template <Side side>
  __device__ void pull_back(const T* inputs, const SequenceSpan& span, std::int64_t begin, int tokens) {
    pull_back_vectors<side>(args_.feature_map, inputs, Layout::input_stride, features_gradient_, Layout::feature_stride,
                            inputs_gradient_, tokens, [&](int t) { return span.position(begin + t); });
  }

  /// Writes rows, the first `zero_rows` as 0, if there is a view.
  __device__ void write(const TensorView<Element>& to, const T* rows, int stride, std::int64_t batch_row,
                        std::int64_t first, int tokens, std::int64_t head, int zero_rows) {
    const int width = static_cast<int>(to.dim);
    for (int index = thread(); to.data != nullptr && index < tokens * width; index += threads) {
      const int t = index / width;
      const int c = index % width;
      to.row(batch_row, first + t, head)[c] = convert<Element>(t < zero_rows ? T(0) : rows[t * stride + c]);
    }
  }

  const BackwardArgs<Config>& args_;
  T* values_;                // [chunk][value_stride]
  T* gradient_;              // [chunk][value_stride], g of the queries without its last component
  T* values_gradient_;       // [chunk][value_stride]
  T* last_column_;           // [rows], of the state
  T* denominator_gradient_;  // [chunk], the last component of g
  T* key_inputs_;            // [chunk][input_stride]
  T* query_inputs_;          // [chunk][input_stride]
  T* inputs_gradient_;       // [chunk][input_stride]
  T* weights_;               // [chunk][score_stride]
  T* pairs_gradient_;        // [chunk][score_stride]
  T* state_;                 // [rows][columns]
  T* key_features_;          // [chunk][feature_stride]
  T* features_gradient_;     // [chunk][feature_stride]
  T* query_features_;        // [chunk][feature_stride]; with a closed form the same as key_features_
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
