// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <jrt/detail/cuda/core/vector.cuh>
#include <jrt/state.hpp>

#include "jrt_lm/step_tokens.cuh"
#include "jrt_lm/step_worker.cuh"

namespace jrt_lm {

/// Linear attention's step of one head of one sequence, by all threads that multiply: its state is in their registers
/// before the tokens are there. A thread has a few neighbouring columns of every `groups`-th row.
///
/// One token is added to the state first. Of several, token t's output is φ(q_t)ᵀS + Σ_{s≤t} k(q_t, k_s) v_s with the state
/// S before them, plus the same over all of the encoder region's, divided by the same of the normaliser: for some tokens at
/// once. They are added to the state then, unless they are staged.
template <class Shape>
class StepLinear {
  using Linear = typename Shape::Linear;
  using Map = typename Linear::FeatureMap;
  using Format = jrt::StateFormatOf<Linear>;
  using Scalar = typename Format::Scalar;
  using E = typename Shape::E;
  static constexpr int d = Map::input_dim;
  static constexpr int features = Format::rows;
  static constexpr int values = Format::columns;
  static constexpr int columns = 16 / static_cast<int>(sizeof(Scalar));
  static constexpr int lanes = values / columns;
  static constexpr int groups = step_consumers / lanes;
  static constexpr int own_rows = (features + groups - 1) / groups;
  static constexpr int own_features = (features + step_consumers - 1) / step_consumers;
  static constexpr bool sums_in_warps = lanes <= 32 && 32 % lanes == 0;
  static constexpr int partial_sums = sums_in_warps ? step_warps : groups;
  static constexpr int input_words = (2 * d + values) / 8;  ///< of 16 bytes: key, query, value
  static constexpr int tokens_at_most = Shape::several ? step_rows : 1;
  static constexpr int at_once = Shape::several ? 4 : 1;  ///< of several tokens

 public:
  /// Whether the features of this map are independent of one another, and rows whole accesses that registers hold.
  static constexpr bool supported = jrt::detail::is_taylor2<Map> && d % 8 == 0 && values % 8 == 0 &&
                                    own_rows * columns <= 96 && input_words <= 32 &&
                                    std::is_same_v<typename Linear::Element, jrt::BFloat16>;

  struct Shared {
    float inputs[tokens_at_most][2 * d + values];
    float encoder_inputs[tokens_at_most][d + values];   ///< key, value
    float kernels[tokens_at_most][2 * tokens_at_most];  ///< of a query and a key, or one of the encoder region
    float key_features[features];
    alignas(16) float query_features[features][at_once];  ///< or of keys
    float denominators[2][at_once][step_warps];
    float partial[at_once][partial_sums][values];
  };

  __device__ StepLinear(Shared& shared, int thread) : shared_(shared), thread_(thread) {}

  /// Asks for the state. Null: the sequence is skipped.
  __device__ void load(const Scalar* state) {
    has_state_ = state != nullptr;
    if (!has_state_) {
      return;
    }
#pragma unroll
    for (int i = 0; i < own_rows; ++i) {
      if (is_own(i)) {
        state_[i].load(state + row(i) * values + column(), true);
      }
    }
#pragma unroll
    for (int i = 0; i < own_features; ++i) {
      if (const int r = thread_ + i * step_consumers; r < features) {
        normaliser_[i] = state[Format::normaliser_offset + r];
      }
    }
  }

  /// Waits for the tokens' keys, queries and values, of which these are the first in a row of x.
  __device__ void await(const StepTokens<E>& tokens, int key, int query, int value) const {
    for (int i = thread_; i < tokens.count * input_words; i += step_consumers) {
      const int t = i / input_words;
      const int c = i % input_words * 8;
      const bool is_query = c >= d && c < 2 * d;
      const uint4 words = await_exchanged(tokens.x + t * tokens.x_columns +
                                          (c < d      ? key + c
                                           : is_query ? query + c - d
                                                      : value + c - 2 * d));
      if (tokens.staged != nullptr && has_state_ && !is_query) {
        *reinterpret_cast<uint4*>(tokens.staged + t * tokens.staged_columns + (c < d ? c : c - d)) = words;
      }
      widen(words, shared_.inputs[t] + c);
    }
  }
  /// Likewise for the encoder region's keys and values.
  __device__ void await_encoder(const StepTokens<E>& tokens, int key, int value) const {
    constexpr int words_of_row = (d + values) / 8;
    for (int i = thread_; i < tokens.encoder_count * words_of_row; i += step_consumers) {
      const int t = i / words_of_row;
      const int c = i % words_of_row * 8;
      widen(await_exchanged(tokens.encoder + t * tokens.encoder_columns + (c < d ? key + c : value + c - d)),
            shared_.encoder_inputs[t] + c);
    }
  }

  /// Adds one token to the state and stores it. `sync()` is a barrier of all threads; `store(column, number)` takes
  /// outputs.
  template <class Sync, class Store>
  __device__ void run(Scalar* state, const Sync& sync, const Store& store) {
    sync();
    if (!has_state_) {
      for (int c = thread_; c < values; c += step_consumers) {
        store(c, 0.0F);
      }
      return;
    }
    float denominator = 0;
#pragma unroll
    for (int i = 0; i < own_features; ++i) {
      if (const int r = thread_ + i * step_consumers; r < features) {
        const float key = Map::key_feature(shared_.inputs[0], r);
        const float query = Map::query_feature(shared_.inputs[0] + d, r);
        shared_.key_features[r] = key;
        shared_.query_features[r][0] = query;
        const float sum = jrt::convert<float>(normaliser_[i]) + key;
        denominator += query * sum;
        state[Format::normaliser_offset + r] = jrt::convert<Scalar>(sum);
      }
    }
    store_denominator(0, 0, denominator);
    sync();
    float sums[columns] = {};
#pragma unroll
    for (int i = 0; i < own_rows; ++i) {
      if (is_own(i)) {
        const float key = shared_.key_features[row(i)];
        const float query = shared_.query_features[row(i)][0];
        float numbers[columns];
        state_[i].get(numbers);
#pragma unroll
        for (int c = 0; c < columns; ++c) {
          numbers[c] += key * shared_.inputs[0][2 * d + column() + c];
          sums[c] += query * numbers[c];
        }
        state_[i].set(numbers);
        state_[i].store(state + row(i) * values + column(), true);
      }
    }
    store_partial(0, sums);
    sync();
    for (int c = thread_; c < values; c += step_consumers) {
      store(c, sum_of_partial(0, c) * Linear::Normaliser::factor(denominator_of(0, 0)));
    }
  }

  /// Outputs of several tokens. `store(t, column, active, number)` takes them, called by whole warps.
  template <class Sync, class Store>
  __device__ void run_several(int tokens, int encoder_tokens, const Sync& sync, const Store& store) {
    static_assert(values % 8 == 0 && at_once * values % 32 == 0);
    sync();
    for (int i = thread_; i < tokens * (tokens + encoder_tokens); i += step_consumers) {
      const int t = i % tokens;
      const int s = i / tokens;
      const float* const key = s < tokens ? shared_.inputs[s] : shared_.encoder_inputs[s - tokens];
      float dot = 0;
#pragma unroll
      for (int c = 0; c < d; ++c) {
        dot += shared_.inputs[t][d + c] * key[c];
      }
      shared_.kernels[t][s < tokens ? s : s - tokens + tokens_at_most] = Map{}.kernel(dot);
    }
    int buffer = 0;
    for (int first = 0; first < tokens; first += at_once, buffer ^= 1) {
      const int count = tokens - first < at_once ? tokens - first : at_once;
      if (has_state_) {
        expand_queries(first, count, buffer);
        sync();
        multiply_queries();
        sync();
      }
      for (int i = thread_; i < at_once * values; i += step_consumers) {
        const int n = i / values;
        const int c = i % values;
        float y = 0;
        if (has_state_ && n < count) {
          float denominator = denominator_of(buffer, n);
          y = sum_of_partial(n, c);
          for (int s = 0; s <= first + n; ++s) {
            const float kernel = shared_.kernels[first + n][s];
            y += kernel * shared_.inputs[s][2 * d + c];
            denominator += kernel;
          }
          for (int s = 0; s < encoder_tokens; ++s) {
            const float kernel = shared_.kernels[first + n][tokens_at_most + s];
            y += kernel * shared_.encoder_inputs[s][d + c];
            denominator += kernel;
          }
          y *= Linear::Normaliser::factor(denominator);
        }
        store(first + n, c, n < count, y);
      }
    }
  }

  /// Adds several tokens and the encoder region's to the state and stores it.
  template <class Sync>
  __device__ void keep_several(Scalar* state, int tokens, int encoder_tokens, const Sync& sync) {
    if (!has_state_) {
      return;
    }
    for (int first = 0; first < tokens + encoder_tokens; first += at_once) {
      const auto input = [&](int n) {
        const int s = first + n;
        return s < tokens ? shared_.inputs[s] : s < tokens + encoder_tokens ? shared_.encoder_inputs[s - tokens] : nullptr;
      };
      sync();
      add_keys(input);
      sync();
#pragma unroll
      for (int n = 0; n < at_once; ++n) {
        if (input(n) != nullptr) {
          add_values(n, input(n) + (first + n < tokens ? 2 * d : d));
        }
      }
    }
#pragma unroll
    for (int i = 0; i < own_rows; ++i) {
      if (is_own(i)) {
        state_[i].store(state + row(i) * values + column(), true);
      }
    }
#pragma unroll
    for (int i = 0; i < own_features; ++i) {
      if (const int r = thread_ + i * step_consumers; r < features) {
        state[Format::normaliser_offset + r] = normaliser_[i];
      }
    }
  }

 private:
  static __device__ void widen(const uint4& words, float* to) {
    const std::uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      to[2 * n] = __uint_as_float(pairs[n] << 16);
      to[2 * n + 1] = __uint_as_float(pairs[n] & 0xFFFF0000U);
    }
  }
  [[nodiscard]] __device__ int group() const {
    return thread_ / lanes;
  }
  [[nodiscard]] __device__ int column() const {
    return thread_ % lanes * columns;
  }
  [[nodiscard]] __device__ int row(int i) const {
    return i * groups + group();
  }
  [[nodiscard]] __device__ bool is_own(int i) const {
    return group() < groups && row(i) < features;
  }

  /// Sum over all threads.
  __device__ void store_denominator(int buffer, int token, float denominator) const {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      denominator += __shfl_xor_sync(~0U, denominator, distance);
    }
    if (thread_ % 32 == 0) {
      shared_.denominators[buffer][token][thread_ / 32] = denominator;
    }
  }
  [[nodiscard]] __device__ float denominator_of(int buffer, int token) const {
    float all = 0;
#pragma unroll
    for (int w = 0; w < step_warps; ++w) {
      all += shared_.denominators[buffer][token][w];
    }
    return all;
  }

  /// Sums of a thread's rows, of some of all rows then.
  __device__ void store_partial(int token, float (&sums)[columns]) const {
    if constexpr (sums_in_warps) {
#pragma unroll
      for (int distance = lanes; distance < 32; distance *= 2) {
#pragma unroll
        for (int c = 0; c < columns; ++c) {
          sums[c] += __shfl_xor_sync(~0U, sums[c], distance);
        }
      }
    }
    if (sums_in_warps ? thread_ % 32 < lanes : thread_ < groups * lanes) {
#pragma unroll
      for (int c = 0; c < columns; ++c) {
        shared_.partial[token][sums_in_warps ? thread_ / 32 : group()][column() + c] = sums[c];
      }
    }
  }
  [[nodiscard]] __device__ float sum_of_partial(int token, int c) const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < partial_sums; ++i) {
      sum += shared_.partial[token][i][c];
    }
    return sum;
  }

  /// Features of some queries, 0 behind the last, and their products with the normaliser.
  __device__ void expand_queries(int first, int count, int buffer) {
    float denominators[at_once] = {};
#pragma unroll
    for (int i = 0; i < own_features; ++i) {
      if (const int r = thread_ + i * step_consumers; r < features) {
#pragma unroll
        for (int n = 0; n < at_once; ++n) {
          const float query = n < count ? Map::query_feature(shared_.inputs[first + n] + d, r) : 0.0F;
          shared_.query_features[r][n] = query;
          denominators[n] += query * jrt::convert<float>(normaliser_[i]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < at_once; ++n) {
      store_denominator(buffer, n, denominators[n]);
    }
  }
  __device__ void multiply_queries() const {
    float sums[at_once][columns] = {};
#pragma unroll
    for (int i = 0; i < own_rows; ++i) {
      if (is_own(i)) {
        float numbers[columns];
        state_[i].get(numbers);
        float queries[at_once];
        *reinterpret_cast<float4*>(queries) = *reinterpret_cast<const float4*>(shared_.query_features[row(i)]);
#pragma unroll
        for (int n = 0; n < at_once; ++n) {
#pragma unroll
          for (int c = 0; c < columns; ++c) {
            sums[n][c] += queries[n] * numbers[c];
          }
        }
      }
    }
#pragma unroll
    for (int n = 0; n < at_once; ++n) {
      store_partial(n, sums[n]);
    }
  }

  /// Features of some keys, which go into the normaliser.
  template <class Input>
  __device__ void add_keys(const Input& input) {
#pragma unroll
    for (int i = 0; i < own_features; ++i) {
      if (const int r = thread_ + i * step_consumers; r < features) {
        float sum = jrt::convert<float>(normaliser_[i]);
#pragma unroll
        for (int n = 0; n < at_once; ++n) {
          const float key = input(n) != nullptr ? Map::key_feature(input(n), r) : 0.0F;
          shared_.query_features[r][n] = key;
          sum += key;
        }
        normaliser_[i] = jrt::convert<Scalar>(sum);
      }
    }
  }
  __device__ void add_values(int n, const float* value) {
    float own[columns];
#pragma unroll
    for (int c = 0; c < columns; ++c) {
      own[c] = value[column() + c];
    }
#pragma unroll
    for (int i = 0; i < own_rows; ++i) {
      if (is_own(i)) {
        const float key = shared_.query_features[row(i)][n];
        float numbers[columns];
        state_[i].get(numbers);
#pragma unroll
        for (int c = 0; c < columns; ++c) {
          numbers[c] += key * own[c];
        }
        state_[i].set(numbers);
      }
    }
  }

  Shared& shared_;
  int thread_;
  bool has_state_ = false;
  jrt::detail::cuda::StoredNumbers<Scalar, columns> state_[own_rows];
  Scalar normaliser_[own_features] = {};
};

}  // namespace jrt_lm
