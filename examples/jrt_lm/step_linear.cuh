// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <jrt/detail/cuda/core/vector.cuh>
#include <jrt/state.hpp>

#include "jrt_lm/step_worker.cuh"

namespace jrt_lm {

/// Linear attention's step of one head of one sequence, by all threads that multiply: its state is in their registers
/// before the token is there. A thread has a few neighbouring columns of every `groups`-th row.
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

 public:
  /// Whether the features of this map are independent of one another, and rows whole accesses that registers hold.
  static constexpr bool supported = jrt::detail::is_taylor2<Map> && d % 8 == 0 && values % 8 == 0 &&
                                    own_rows * columns <= 96 && input_words <= 32 &&
                                    std::is_same_v<typename Linear::Element, jrt::BFloat16>;

  struct Shared {
    float inputs[2 * d + values];
    float key_features[features];
    float query_features[features];
    float denominators[step_warps];
    float partial[partial_sums][values];
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

  /// Waits for the token's key, query and value in an exchange.
  __device__ void await(const E* key, const E* query, const E* value) const {
    if (thread_ < input_words) {
      const int word = thread_;
      const E* const from = word < d / 8       ? key + 8 * word
                            : word < 2 * d / 8 ? query + 8 * word - d
                                               : value + 8 * word - 2 * d;
      uint4 words = load_exchanged(from);
      while (is_absent16(words)) {
        words = load_exchanged(from);
      }
      const std::uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        shared_.inputs[8 * word + 2 * i] = __uint_as_float(pairs[i] << 16);
        shared_.inputs[8 * word + 2 * i + 1] = __uint_as_float(pairs[i] & 0xFFFF0000U);
      }
    }
  }

  /// Adds the token to the state and stores it. `sync()` is a barrier of all threads; `store(column, number)` takes
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
        const float key = Map::key_feature(shared_.inputs, r);
        const float query = Map::query_feature(shared_.inputs + d, r);
        shared_.key_features[r] = key;
        shared_.query_features[r] = query;
        const float sum = jrt::convert<float>(normaliser_[i]) + key;
        denominator += query * sum;
        state[Format::normaliser_offset + r] = jrt::convert<Scalar>(sum);
      }
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      denominator += __shfl_xor_sync(~0U, denominator, distance);
    }
    if (thread_ % 32 == 0) {
      shared_.denominators[thread_ / 32] = denominator;
    }
    sync();
    float sums[columns] = {};
#pragma unroll
    for (int i = 0; i < own_rows; ++i) {
      if (is_own(i)) {
        const float key = shared_.key_features[row(i)];
        const float query = shared_.query_features[row(i)];
        float numbers[columns];
        state_[i].get(numbers);
#pragma unroll
        for (int c = 0; c < columns; ++c) {
          numbers[c] += key * shared_.inputs[2 * d + column() + c];
          sums[c] += query * numbers[c];
        }
        state_[i].set(numbers);
        state_[i].store(state + row(i) * values + column(), true);
      }
    }
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
        shared_.partial[sums_in_warps ? thread_ / 32 : group()][column() + c] = sums[c];
      }
    }
    sync();
    for (int c = thread_; c < values; c += step_consumers) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < partial_sums; ++i) {
        sum += shared_.partial[i][c];
      }
      float all = 0;
#pragma unroll
      for (int w = 0; w < step_warps; ++w) {
        all += shared_.denominators[w];
      }
      store(c, sum * Linear::Normaliser::factor(all));
    }
  }

 private:
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

  Shared& shared_;
  int thread_;
  bool has_state_ = false;
  jrt::detail::cuda::StoredNumbers<Scalar, columns> state_[own_rows];
  Scalar normaliser_[own_features] = {};
};

}  // namespace jrt_lm
