// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/window/backward_layout.cuh"
#include "jrt/detail/cuda/window/query.cuh"
#include "jrt/detail/cuda/window/sequence.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/sequence_runs.hpp"
#include "jrt/detail/plan/window_range.hpp"
#include "jrt/detail/shared/window/backward_call.hpp"

/// Gradients of window attention one row per block, for every type and dimension: the own row and the other rows of
/// backward_tiles.cuh are here single vectors. A warp's lanes form groups as in query.cuh; each group takes one other row
/// at a time, each lane a few of its elements. At the end the groups' sums are added in order.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

template <WindowConfig Config, bool of_keys>
class WindowBackwardRow {
 public:
  using Layout = QueryLayout<Config>;
  using Element = typename Layout::Element;
  using T = typename Layout::T;
  using Call = WindowBackwardCall<Config>;
  using RowSums = WindowRowSums<T>;
  static constexpr int vector = Layout::vector;
  static constexpr int parts = Layout::parts;
  static constexpr int head_dim = Config::head_dim;
  static constexpr int value_dim = Config::value_dim;
  static constexpr std::int64_t left = Config::left_window;

  struct Shared {
    T groups[Layout::groups][Layout::dim];
    T sums[Layout::dim];
  };
  /// A row's elements in this lane.
  using Numbers = T[parts][vector];

  __device__ WindowBackwardRow(const Call& call, RowSums* row_sums, const SequenceSpan& span, std::int64_t head,
                               std::int64_t token, bool aligned, Shared& shared)
      : call_(call),
        row_sums_(row_sums),
        span_(span),
        head_(head),
        token_(token),
        tokens_(span.tokens - span.left_pad),
        aligned_(aligned),
        shared_(shared) {}

  __device__ void run() {
    load_head(own_head_, of_keys ? call_.key : call_.query, head_, token_, of_keys);
    load<value_dim>(own_value_, row_of(of_keys ? call_.value : call_.output_gradient, head_, token_));
    if constexpr (of_keys) {
      const TokenRange queries = queries_of_keys(token_, 1, left, tokens_);
      const std::int64_t count = queries.size() * call_.group();
      for (std::int64_t i = 0; i < count; i += Layout::groups) {
        const std::int64_t other = i + group();
        const std::int64_t query_head = head_ * call_.group() + other / queries.size();
        take(other < count, query_head, queries.begin + other % queries.size());
      }
    } else {
      find_row_sums();
      const TokenRange keys = keys_in_window(token_, call_.wants_query() ? 1 : 0, left, 0);
      for (std::int64_t key = keys.begin; key < keys.end; key += Layout::groups) {
        take(key + group() < keys.end, head_ / call_.group(), key + group());
      }
    }
    write_gradients();
  }

 private:
  static __device__ int group() { return static_cast<int>(threadIdx.x) / Layout::lanes; }
  static __device__ int column(int part) {
    return (part * Layout::lanes + static_cast<int>(threadIdx.x) % Layout::lanes) * vector;
  }
  template <class View>
  [[nodiscard]] __device__ auto* row_of(const View& view, std::int64_t head, std::int64_t token) const {
    return view.row(span_.batch_row, span_.first_token + span_.left_pad + token, head);
  }
  [[nodiscard]] __device__ RowSums* row_sums(std::int64_t query_head, std::int64_t token) const {
    return row_sums_ + (span_.batch_row * call_.query.heads + query_head) * call_.query.tokens + span_.first_token +
           span_.left_pad + token;
  }

  /// Loads a row's elements; 0 past its end.
  template <int dim>
  __device__ void load(Numbers& numbers, const Element* row) const {
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      if (column(part) + vector <= dim) {
        StoredNumbers<Element, vector> stored;
        stored.load(row + column(part), aligned_);
        stored.get(numbers[part]);
      } else {
#pragma unroll
        for (int c = 0; c < vector; ++c) {
          numbers[part][c] = column(part) + c < dim ? convert<T>(row[column(part) + c]) : T(0);
        }
      }
    }
  }
  /// Loads a query or key, rotated; keys are rounded as the forward pass rounds them.
  __device__ void load_head(Numbers& numbers, const TensorView<const Element>& view, std::int64_t head, std::int64_t token,
                            [[maybe_unused]] bool is_key) const {
    const Element* const row = row_of(view, head, token);
    if constexpr (Config::Rotary::rotates) {
#pragma unroll
      for (int part = 0; part < parts; ++part) {
#pragma unroll
        for (int c = 0; c < vector; ++c) {
          T number = 0;
          if (column(part) + c < head_dim) {
            number = rotated_value(call_.rotary, row, token, column(part) + c);
            number = is_key ? convert<T>(convert<Element>(number)) : number;
          }
          numbers[part][c] = number;
        }
      }
    } else {
      load<head_dim>(numbers, row);
    }
  }

  static __device__ T dot(const Numbers& a, const Numbers& b) {
    T sum = 0;
#pragma unroll
    for (int part = 0; part < parts; ++part) {
#pragma unroll
      for (int c = 0; c < vector; ++c) {
        sum += a[part][c] * b[part][c];
      }
    }
#pragma unroll
    for (int distance = Layout::lanes / 2; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(~0u, sum, distance);
    }
    return sum;
  }
  static __device__ void add(Numbers& sums, T factor, const Numbers& numbers) {
#pragma unroll
    for (int part = 0; part < parts; ++part) {
#pragma unroll
      for (int c = 0; c < vector; ++c) {
        sums[part][c] += factor * numbers[part][c];
      }
    }
  }

  /// The sums of the own query; also to the workspace, for the other kernel.
  __device__ void find_row_sums() {
    Numbers output;
    load<value_dim>(output, row_of(call_.output, head_, token_));
    const T log_sum = *row_of(call_.log_sum_exp, head_, token_);
    own_sums_ = {log_sum == -INFINITY ? static_cast<T>(INFINITY) : log_sum, dot(own_value_, output)};
    if (threadIdx.x == 0) {
      *row_sums(head_, token_) = own_sums_;
    }
  }

  /// Adds what another row contributes, where this group has one; all lanes of the warp take part.
  __device__ void take(bool exists, std::int64_t head, std::int64_t token) {
    Numbers other_head = {};
    Numbers other_value = {};
    RowSums sums{static_cast<T>(INFINITY), 0};
    if (exists) {
      load_head(other_head, of_keys ? call_.query : call_.key, head, token, !of_keys);
      load<value_dim>(other_value, row_of(of_keys ? call_.output_gradient : call_.value, head, token));
      sums = of_keys ? *row_sums(head, token) : own_sums_;
    }
    const T weight = exp(dot(own_head_, other_head) * static_cast<T>(call_.scale) - sums.log_sum);
    const T score_gradient = weight * (dot(own_value_, other_value) - sums.delta);
    add(head_gradient_, score_gradient, other_head);
    if constexpr (of_keys) {
      add(value_gradient_, weight, other_value);
    }
  }

  __device__ void write_gradients() {
    const auto& head_view = of_keys ? call_.key_gradient : call_.query_gradient;
    if (head_view.data != nullptr) {
      add_groups<head_dim>(head_gradient_);
      Element* const to = row_of(head_view, head_, token_);
      for (int c = static_cast<int>(threadIdx.x); c < head_dim; c += Layout::threads) {
        to[c] = convert<Element>(rotated_back(c) * static_cast<T>(call_.scale) + there(to[c]));
      }
      __syncthreads();
    }
    if (of_keys && call_.wants_value()) {
      add_groups<value_dim>(value_gradient_);
      Element* const to = row_of(call_.value_gradient, head_, token_);
      for (int c = static_cast<int>(threadIdx.x); c < value_dim; c += Layout::threads) {
        to[c] = convert<Element>(shared_.sums[c] + there(to[c]));
      }
    }
  }
  /// What a gradient is added to.
  static __device__ T there(Element number) {
    if constexpr (adds_gradients<Config>) {
      return convert<T>(number);
    } else {
      return T(0);
    }
  }
  /// The groups' sums, added in order, in shared memory.
  template <int dim>
  __device__ void add_groups(const Numbers& numbers) const {
#pragma unroll
    for (int part = 0; part < parts; ++part) {
#pragma unroll
      for (int c = 0; c < vector; ++c) {
        if (column(part) + c < dim) {
          shared_.groups[group()][column(part) + c] = numbers[part][c];
        }
      }
    }
    __syncthreads();
    for (int c = static_cast<int>(threadIdx.x); c < dim; c += Layout::threads) {
      T sum = 0;
      for (int g = 0; g < Layout::groups; ++g) {
        sum += shared_.groups[g][c];
      }
      shared_.sums[c] = sum;
    }
    __syncthreads();
  }
  /// Element c of the sums by the rotation transposed.
  [[nodiscard]] __device__ T rotated_back(int c) const {
    if constexpr (Config::Rotary::rotates) {
      constexpr int half = Config::Rotary::half_dim;
      const int i = c % half;
      Rotation<T> rotation = rotation_for<Element>(call_.rotary, token_, i);
      rotation.sine = -rotation.sine;
      T first = shared_.sums[i];
      T second = shared_.sums[i + half];
      rotate_pair(rotation, first, second);
      return c < half ? first : second;
    } else {
      return shared_.sums[c];
    }
  }

  const Call& call_;
  RowSums* row_sums_;
  const SequenceSpan& span_;
  std::int64_t head_;
  std::int64_t token_;
  std::int64_t tokens_;
  bool aligned_;
  Shared& shared_;
  RowSums own_sums_{};
  Numbers own_head_;
  Numbers own_value_;
  Numbers head_gradient_ = {};
  Numbers value_gradient_ = {};
};

/// One block per row and head: with `of_keys` those of keys and values, else those of queries. The kernel of queries also
/// writes the row sums, which that of keys reads.
template <WindowConfig Config, bool of_keys>
__global__ void __launch_bounds__(QueryLayout<Config>::threads)
    window_row_gradients(const __grid_constant__ WindowBackwardCall<Config> call,
                         WindowRowSums<ComputeType<typename Config::Element>>* row_sums, bool aligned) {
  __shared__ typename WindowBackwardRow<Config, of_keys>::Shared shared;
  const std::int64_t heads = of_keys ? call.key.heads : call.query.heads;
  const std::int64_t head = blockIdx.x % heads;
  const RowRun run(call.sequences, call.query.tokens, blockIdx.x / heads, 1);
  const SequenceSpan span = call.span(run.b);
  if (!run.within(span)) {
    return;
  }
  const std::int64_t token = run.first_row - span.left_pad;
  if (token >= 0 && run.first_row < span.tokens) {
    WindowBackwardRow<Config, of_keys>(call, row_sums, span, head, token, aligned, shared).run();
    return;
  }
  const auto zero = [&](const TensorView<typename Config::Element>& gradient) {
    if (gradient.data != nullptr) {
      auto* const row = gradient.row(span.batch_row, span.first_token + run.first_row, head);
      for (int c = static_cast<int>(threadIdx.x); c < gradient.dim; c += static_cast<int>(blockDim.x)) {
        row[c] = typename Config::Element{};
      }
    }
  };
  zero(of_keys ? call.key_gradient : call.query_gradient);
  if (of_keys) {
    zero(call.value_gradient);
  }
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
