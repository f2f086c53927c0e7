// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/linear/simt_gradient_layout.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/mixer/linear_attention.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// A block's arrays in the backward pass, and the products of them. Formed in patches of a few rows by four columns per
/// thread; callers put barriers between products.
template <AttentionConfig Config>
class SimtGradientProducts {
 public:
  using Layout = SimtGradientLayout<Config>;
  using T = typename Layout::T;
  using Map = typename Config::FeatureMap;

  static constexpr int threads = simt_gradient_tuning.threads;
  static constexpr int chunk = Layout::chunk;

  /// `shared` and `scratch` are this block's; `denominator_gradients` as output_products.hpp has them.
  __device__ SimtGradientProducts(const BackwardArgs<Config>& args, const TensorView<T>& denominator_gradients,
                                  void* shared, void* scratch)
      : args_(args), denominator_gradients_(denominator_gradients) {
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
    key_features_ = take(features, Layout::feature_array);
    features_gradient_ = take(features, Layout::feature_array);
    query_features_ = Map::has_closed_form ? key_features_ : take(features, Layout::feature_array);
  }

 protected:
  static constexpr int patch_columns = Layout::columns / 4;

  static __device__ int thread() { return static_cast<int>(threadIdx.x); }

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
  /// form times the kernel's derivative. Not `finished`, scores take the place of weights of a closed form, and that
  /// factor is left out.
  template <bool finished>
  __device__ void pair(int tokens) {
    for_pairs(tokens, [&](int i, int j) {
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
        if constexpr (finished) {
          gradient *= args_.feature_map.kernel_derivative(weight);
          weight = args_.feature_map.kernel(weight);
        }
      } else {
        for (int r = 0; r < Layout::rows; ++r) {
          weight += query_features_[i * Layout::feature_stride + r] * key_features_[j * Layout::feature_stride + r];
        }
      }
      weights_[i * Layout::score_stride + j] = weight;
      pairs_gradient_[i * Layout::score_stride + j] = gradient;
    });
  }

  /// Sums of numerator · g and of the denominator of a query.
  struct OutputSums {
    T product = 0;
    T denominator = 0;
  };

  /// Those of query t, from features_gradient = S g and, `with_pairs`, those not finished; a lane's share of them.
  template <bool with_pairs>
  __device__ OutputSums output_sums(int t, int lane, int lanes) const {
    OutputSums sums;
    for (int r = lane; r < Layout::rows; r += lanes) {
      const T feature = query_features_[t * Layout::feature_stride + r];
      sums.product += feature * features_gradient_[t * Layout::feature_stride + r];
      sums.denominator += feature * last_column_[r];
    }
    for (int j = lane; with_pairs && j <= t; j += lanes) {
      T weight = weights_[t * Layout::score_stride + j];
      if constexpr (Map::has_closed_form) {
        weight = args_.feature_map.kernel(weight);
      }
      sums.product += weight * pairs_gradient_[t * Layout::score_stride + j];
      sums.denominator += weight;
    }
    return sums;
  }

  /// Brings the last component of g to features_gradient and, `with_pairs`, to those not finished, and finishes them.
  template <bool with_pairs>
  __device__ void add_denominator_gradients(int tokens) {
    for (int index = thread(); index < tokens * Layout::rows; index += threads) {
      const int t = index / Layout::rows;
      const int r = index % Layout::rows;
      features_gradient_[t * Layout::feature_stride + r] += last_column_[r] * denominator_gradient_[t];
    }
    if constexpr (with_pairs) {
      for_pairs(tokens, [&](int i, int j) {
        T& gradient = pairs_gradient_[i * Layout::score_stride + j];
        gradient += denominator_gradient_[i];
        if constexpr (Map::has_closed_form) {
          gradient *= args_.feature_map.kernel_derivative(weights_[i * Layout::score_stride + j]);
        }
      });
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

  /// Calls `function(i, j)` for queries i and keys j <= i of the chunk.
  template <class Function>
  __device__ void for_pairs(int tokens, const Function& function) {
    for (int index = thread(); index < chunk * chunk; index += threads) {
      const int i = index / chunk;
      const int j = index % chunk;
      if (i < tokens && j <= i) {
        function(i, j);
      }
    }
  }

  __device__ void clear_inputs_gradient() {
    for (int i = thread(); i < chunk * Layout::input_stride; i += threads) {
      inputs_gradient_[i] = T(0);
    }
  }

  const BackwardArgs<Config>& args_;
  const TensorView<T>& denominator_gradients_;
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
