// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/threads.cuh"
#include "jrt/detail/cuda/linear/expand.cuh"
#include "jrt/detail/cuda/linear/step_call.cuh"
#include "jrt/detail/integer.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The tokens of a step, as the block of one head reads them: keys and values from the views, the staging buffer or, where
/// keys are evicted from a window, from its ring; queries from the views. One token at a time goes through registers to
/// shared memory and is expanded there. Called by all threads of the part.
template <class Config, class Part = WholeBlock<StepCall<Config>::Layout::threads>>
class StepTokens {
 public:
  using Call = StepCall<Config>;
  using Format = typename Call::Format;
  using Element = typename Call::Element;
  using Map = typename Config::FeatureMap;
  using T = typename Call::T;
  using Layout = StepLayout<Format, T>;

  /// Shared memory of one token.
  struct Shared {
    T key_input[Map::input_dim];
    T query_input[Map::input_dim];
    T value[Format::columns];
  };

  /// `key_features` and `query_features` are shared memory for one value per row each.
  __device__ StepTokens(const Call& call, std::int64_t b, std::int64_t head, Shared& shared, T* key_features,
                        T* query_features, const Part& part)
      : part_(part),
        call_(call),
        b_(b),
        head_(head),
        shared_(shared),
        key_features_(key_features),
        query_features_(query_features) {}

  /// With `keys` tokens, all of them staged if they are to be committed.
  __device__ void find_evicted(std::int64_t keys) { evicted_.find(call_, b_, head_, keys); }

  [[nodiscard]] __device__ const T* key_features() const { return key_features_; }
  [[nodiscard]] __device__ const T* query_features() const { return query_features_; }
  [[nodiscard]] __device__ const T* value() const { return shared_.value; }

  /// Issues the loads of a token's key, value and first query to registers.
  __device__ void fetch(std::int64_t t) {
    const Element* const key = key_row(t);
    const Element* const value = value_row(t);
#pragma unroll
    for (int i = 0; i < input_parts; ++i) {
      const int c = thread() + i * Layout::threads;
      if (c < Map::input_dim + Format::columns) {
        if (has_key(t)) {
          fetched_input_[i] = c < Map::input_dim ? key[c] : value[c - Map::input_dim];
        } else {
          fetched_input_[i] = Element{};
        }
      }
    }
    if (has_output(t)) {
      const Element* const query = query_row(t, 0);
#pragma unroll
      for (int i = 0; i < query_parts; ++i) {
        if (const int c = thread() + i * Layout::threads; c < Map::input_dim) {
          fetched_query_[i] = query[c];
        }
      }
    }
  }

  /// Moves what was fetched to shared memory and expands it there; a new key and value of a staged step go after the staged
  /// ones, too.
  __device__ void place(std::int64_t t) {
    if (stages(t)) {
      Element* const staged = call_.staging.row(b_, t, head_);
#pragma unroll
      for (int i = 0; i < input_parts; ++i) {
        if (const int c = thread() + i * Layout::threads; c < Map::input_dim + Format::columns) {
          staged[c] = fetched_input_[i];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < input_parts; ++i) {
      const int c = thread() + i * Layout::threads;
      if (c < Map::input_dim) {
        shared_.key_input[c] = convert<T>(fetched_input_[i]);
      } else if (c < Map::input_dim + Format::columns) {
        shared_.value[c - Map::input_dim] = convert<T>(fetched_input_[i]);
      }
    }
    if (has_output(t)) {
#pragma unroll
      for (int i = 0; i < query_parts; ++i) {
        if (const int c = thread() + i * Layout::threads; c < Map::input_dim) {
          shared_.query_input[c] = convert<T>(fetched_query_[i]);
        }
      }
    }
    part_.sync();
    if (has_key(t)) {
      expand<Side::key>(shared_.key_input, key_features_, position(t), 0);
    } else {
      for (int r = thread(); r < Format::rows; r += Layout::threads) {
        key_features_[r] = T(0);
      }
    }
    if (has_output(t)) {
      expand<Side::query>(shared_.query_input, query_features_, position(t), Layout::threads - 1);
    }
    part_.sync();
  }

  /// Reads and expands query head g > 0 of token t.
  __device__ void read_query(std::int64_t t, std::int64_t g) {
    part_.sync();
    const Element* const query = query_row(t, g);
    for (int i = thread(); i < Map::input_dim; i += Layout::threads) {
      shared_.query_input[i] = convert<T>(query[i]);
    }
    part_.sync();
    expand<Side::query>(shared_.query_input, query_features_, position(t), 0);
    part_.sync();
  }

 private:
  // Elements that a thread fetches of each.
  static constexpr int input_parts = ceil_div(Map::input_dim + Format::columns, Layout::threads);
  static constexpr int query_parts = ceil_div(Map::input_dim, Layout::threads);

  [[nodiscard]] __device__ int thread() const {
    return part_.rank();
  }

  /// Whether a token's key and value come from the staging buffer, as those staged by earlier calls do; new ones come from
  /// the views.
  [[nodiscard]] __device__ bool from_staging(std::int64_t t) const {
    return call_.accepted_tokens != nullptr || t < call_.already_staged;
  }
  [[nodiscard]] __device__ bool stages(std::int64_t t) const {
    return call_.staging.data != nullptr && !from_staging(t);
  }
  [[nodiscard]] __device__ bool has_key([[maybe_unused]] std::int64_t t) const {
    if constexpr (consumes_evicted_keys<Config>) {
      return t >= evicted_.tokens_without_key;
    } else {
      return true;
    }
  }
  [[nodiscard]] __device__ const Element* key_row(std::int64_t t) const {
    if constexpr (consumes_evicted_keys<Config>) {
      return has_key(t) ? evicted_.source.key(evicted_.token(t)) : nullptr;
    }
    return from_staging(t) ? call_.staging.row(b_, t, head_) : call_.key.row(b_, t - call_.already_staged, head_);
  }
  [[nodiscard]] __device__ const Element* value_row(std::int64_t t) const {
    if constexpr (consumes_evicted_keys<Config>) {
      return has_key(t) ? evicted_.source.value(evicted_.token(t)) : nullptr;
    }
    return from_staging(t) ? call_.staging.row(b_, t, head_) + Map::input_dim
                           : call_.value.row(b_, t - call_.already_staged, head_);
  }

  /// Position of token t, counted from 1.
  [[nodiscard]] __device__ std::int64_t position(std::int64_t t) const {
    return 1 + t + (call_.first_positions == nullptr ? 0 : call_.first_positions[b_]);
  }

  /// Whether a token has queries in this call.
  [[nodiscard]] __device__ bool has_output(std::int64_t t) const {
    return t >= call_.already_staged && call_.group > 0;
  }

  [[nodiscard]] __device__ const Element* query_row(std::int64_t t, std::int64_t g) const {
    return call_.query.row(b_, t - call_.already_staged, head_ * call_.group + g);
  }

  /// Expands with all threads where rows are independent, otherwise with thread `one`.
  template <Side side>
  __device__ void expand(const T* x, T* features, std::int64_t position, int one) {
    if constexpr (is_taylor2<Map>) {
      for (int r = thread(); r < Format::rows; r += Layout::threads) {
        features[r] = taylor_feature<side, Map>(x, r);
      }
    } else if (thread() == one) {
      expand_vector<side>(call_.map, x, features, position);
    }
  }

  [[no_unique_address]] Part part_;
  const Call& call_;
  std::int64_t b_;
  std::int64_t head_;
  Shared& shared_;
  T* key_features_;    // [rows]
  T* query_features_;  // [rows]
  [[no_unique_address]] StepEvicted<Config> evicted_;
  Element fetched_input_[input_parts] = {};
  Element fetched_query_[query_parts] = {};
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
