// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/window/exponential.cuh"
#include "jrt/detail/cuda/window/sequence.cuh"
#include "jrt/detail/shared/window/online_softmax.hpp"

/// One query per block, for every type and dimension: steps of several tokens, and prefill where the matrix unit is not
/// used.
///
/// A warp's lanes form groups; each group takes one key at a time, each lane a few of its elements. A group keeps its own
/// softmax and weighted values; at the end groups and warps are merged.
///
///     bfloat16, d = 64: 8 lanes of 8 elements to a key, 16 groups in a block
///     keys   i−L … i      0  1  2 … 15 | 16 … 31 | …     the ring's rows in any order, then the call's own
///     group               0  1  2 … 15 |  0 … 15 | …     four keys of each are in flight at a time
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

template <WindowConfig Config>
struct QueryLayout {
  using Element = typename Config::Element;
  using T = ComputeType<Element>;
  static constexpr int threads = window_query_tuning.threads;
  static constexpr int warps = threads / 32;
  static constexpr int dim = larger(Config::head_dim, Config::value_dim);
  static constexpr int vector = access_bytes / static_cast<int>(sizeof(Element));  // elements of one access

  static constexpr int power_of_two(int least) {
    int power = 1;
    while (power < least) {
      power *= 2;
    }
    return power;
  }
  static constexpr int lanes = smaller(32, power_of_two(ceil_div(dim, vector)));  // of a group
  static constexpr int parts = ceil_div(dim, vector* lanes);                      // vectors of a lane
  static constexpr int groups = warps * 32 / lanes;
  static constexpr int keys_in_flight = parts > 1              ? window_query_tuning.wide_keys_in_flight
                                        : sizeof(Element) == 2 ? window_query_tuning.narrow_keys_in_flight
                                                               : window_query_tuning.keys_in_flight;  // of a group
};

template <WindowConfig Config>
class WindowQuery {
 public:
  using Layout = QueryLayout<Config>;
  using Element = typename Layout::Element;
  using T = typename Layout::T;
  using Numbers = StoredNumbers<Element, Layout::vector>;
  using Exponential = FiniteExponential<T>;
  using Softmax = OnlineSoftmax<T, Exponential>;
  static constexpr int vector = Layout::vector;
  static constexpr int parts = Layout::parts;
  static constexpr int keys_in_flight = Layout::keys_in_flight;

  struct Shared {
    T maxima[Layout::groups];
    T denominators[Layout::groups];
    T log_sum;
    T values[Layout::groups][round_up(Config::value_dim, vector)];
  };

  __device__ WindowQuery(const WindowCall<Config>& call, const WindowSequence<Config>& sequence, bool aligned,
                         Shared& shared)
      : call_(call), sequence_(sequence), aligned_(aligned), shared_(shared) {}

  /// Writes the output of the query of one token to `output`, and the logarithm of the sum of its weights to shared memory,
  /// where thread 0 finds it. With a softmax carry-in, `output` holds the sum before, and `before` is its denominator.
  __device__ void run(std::int64_t token, const Element* query, Element* output, T before) {
    read_query(query, sequence_.keys.position(token));
    const TokenRange range = keys_in_window(token, 1, Config::left_window, sequence_.keys.lowest());
    constexpr int step = Layout::groups * keys_in_flight;
    for (std::int64_t first = range.begin; first < range.end; first += step) {
      take_keys(first, range.end);
    }
    finish(output, before);
  }

 private:
  static __device__ int group() { return static_cast<int>(threadIdx.x) / Layout::lanes; }
  static __device__ int column(int part) {
    return (part * Layout::lanes + static_cast<int>(threadIdx.x) % Layout::lanes) * vector;
  }

  /// Loads some of a row's elements; 0 past its end.
  template <int dim>
  __device__ void load(Numbers& numbers, const Element* row, int column) const {
    if (column + vector <= dim) {
      numbers.load(row + column, aligned_);
    } else {
      Element tail[vector] = {};
      for (int c = 0; c < vector; ++c) {
        if (column + c < dim) {
          tail[c] = row[column + c];
        }
      }
      numbers.load(tail, false);
    }
  }

  __device__ void read_query(const Element* query, std::int64_t position) {
#pragma unroll
    for (int part = 0; part < parts; ++part) {
#pragma unroll
      for (int c = 0; c < vector; ++c) {
        const int number = column(part) + c;
        query_[part][c] = number < Config::head_dim
                              ? rotated_value(call_.rotary, query, position, number) * static_cast<T>(call_.scale)
                              : T(0);
      }
    }
  }

  __device__ void take_keys(std::int64_t first, std::int64_t end) {
    Numbers keys[keys_in_flight][parts];
    Numbers values[keys_in_flight][parts];
#pragma unroll
    for (int i = 0; i < keys_in_flight; ++i) {
      const std::int64_t token = first + i * Layout::groups + group();
      if (token < end) {
        const Element* const key = sequence_.keys.key(token);
        const Element* const value = sequence_.keys.value(token);
#pragma unroll
        for (int part = 0; part < parts; ++part) {
          load<Config::head_dim>(keys[i][part], key, column(part));
          load<Config::value_dim>(values[i][part], value, column(part));
        }
      }
    }
    T scores[keys_in_flight];
    T most = softmax_.maximum;
#pragma unroll
    for (int i = 0; i < keys_in_flight; ++i) {
      const std::int64_t token = first + i * Layout::groups + group();
      scores[i] = score(keys[i], token, end);
      most = most < scores[i] ? scores[i] : most;
    }
    if (most == Exponential::lowest) {
      return;  // the same for all lanes of a group; this round's shuffles are done
    }
    const T factor = softmax_.absorb(most);
#pragma unroll
    for (int part = 0; part < parts; ++part) {
#pragma unroll
      for (int c = 0; c < vector; ++c) {
        sums_[part][c] *= factor;
      }
    }
#pragma unroll
    for (int i = 0; i < keys_in_flight; ++i) {
      if (first + i * Layout::groups + group() >= end) {
        continue;
      }
      const T weight = softmax_.weight(scores[i]);
      softmax_.denominator += weight;
#pragma unroll
      for (int part = 0; part < parts; ++part) {
        T numbers[vector];
        values[i][part].get(numbers);
#pragma unroll
        for (int c = 0; c < vector; ++c) {
          sums_[part][c] += weight * numbers[c];
        }
      }
    }
  }

  [[nodiscard]] __device__ T score(const Numbers (&key)[parts], std::int64_t token, std::int64_t end) const {
    T dot = 0;
    if (token < end) {
#pragma unroll
      for (int part = 0; part < parts; ++part) {
        T numbers[vector];
        key[part].get(numbers);
        rotate_if_new(numbers, token, part);
#pragma unroll
        for (int c = 0; c < vector; ++c) {
          dot += query_[part][c] * numbers[c];
        }
      }
    }
#pragma unroll
    for (int distance = Layout::lanes / 2; distance > 0; distance /= 2) {
      dot += __shfl_xor_sync(~0u, dot, distance);
    }
    return token < end ? dot : Exponential::lowest;
  }

  /// Rotates a key of this call where it is used, and rounds it as the cache will hold it.
  __device__ void rotate_if_new(T (&numbers)[vector], std::int64_t token, int part) const {
    if constexpr (Config::Rotary::rotates) {
      if (!WindowKeys<Config>::is_rotated(token)) {
        const Element* const key = sequence_.keys.key(token);
#pragma unroll
        for (int c = 0; c < vector; ++c) {
          if (column(part) + c < Config::head_dim) {
            numbers[c] = convert<T>(
                convert<Element>(rotated_value(call_.rotary, key, sequence_.keys.position(token), column(part) + c)));
          }
        }
      }
    }
  }

  /// Merges groups and warps.
  __device__ void finish(Element* output, [[maybe_unused]] T before) {
    if (threadIdx.x % Layout::lanes == 0) {
      shared_.maxima[group()] = softmax_.maximum;
      shared_.denominators[group()] = softmax_.denominator;
    }
#pragma unroll
    for (int part = 0; part < parts; ++part) {
#pragma unroll
      for (int c = 0; c < vector; ++c) {
        if (column(part) + c < Config::value_dim) {
          shared_.values[group()][column(part) + c] = sums_[part][c];
        }
      }
    }
    __syncthreads();
    T most = has_softmax_carry_in<Config> ? T(0) : Exponential::lowest;
    for (int g = 0; g < Layout::groups; ++g) {
      most = most < shared_.maxima[g] ? shared_.maxima[g] : most;
    }
    for (int c = static_cast<int>(threadIdx.x); c < Config::value_dim; c += Layout::threads) {
      Softmax softmax{most};
      T value = 0;
      if constexpr (has_softmax_carry_in<Config>) {
        softmax = {T(0), before + static_cast<T>(Config::epsilon)};
        const T factor = softmax.absorb(most);
        value = before == 0 ? T(0) : before * factor * convert<T>(output[c]);
      }
      for (int g = 0; g < Layout::groups; ++g) {
        const T factor = softmax.merge({shared_.maxima[g], shared_.denominators[g]});
        value += factor * shared_.values[g][c];
      }
      output[c] = convert<Element>(softmax.finish(value));
      if (c == 0) {
        shared_.log_sum = softmax.log_sum();
      }
    }
  }

  const WindowCall<Config>& call_;
  const WindowSequence<Config>& sequence_;
  bool aligned_;
  Shared& shared_;
  T query_[parts][vector];
  T sums_[parts][vector] = {};
  Softmax softmax_;
};

/// One block per row and query head. Of a staged step, the first query head of each key head stages the row's token.
template <WindowConfig Config>
__global__ void __launch_bounds__(QueryLayout<Config>::threads)
    window_queries(const __grid_constant__ WindowCall<Config> call, bool aligned) {
  await_previous_kernel();
  let_next_kernel_start();
  __shared__ typename WindowQuery<Config>::Shared shared;
  const std::int64_t query_head = blockIdx.x % call.query.heads;
  RowRun run(call.sequences, call.query.tokens, blockIdx.x / call.query.heads, 1);
  run.first_row += call.first_output(run.b);
  const std::int64_t head = query_head / call.group();
  const WindowSequence<Config> sequence(call, run.b, head);
  if (!run.within(sequence.span)) {
    return;
  }
  const std::int64_t row = sequence.span.first_token + run.first_row;
  auto* const output = call.output.row(sequence.span.batch_row, row, query_head);
  if (!sequence.has_token(run.first_row)) {
    for (int c = static_cast<int>(threadIdx.x); c < Config::value_dim; c += static_cast<int>(blockDim.x)) {
      output[c] = typename Config::Element{};
    }
    if (threadIdx.x == 0) {
      call.set_log_sum_exp(sequence.span.batch_row, row, query_head, -INFINITY);
    }
    return;
  }
  if (call.stages() && query_head % call.group() == 0) {
    stage_tokens(call, sequence, run.b, head, {run.first_row, run.first_row + 1});
  }
  typename QueryLayout<Config>::T before = 0;
  if constexpr (has_softmax_carry_in<Config>) {
    before = call.before.denominator(sequence.span.batch_row, row, query_head);
  }
  WindowQuery<Config>(call, sequence, aligned, shared)
      .run(run.first_row - sequence.span.left_pad, call.query.row(sequence.span.batch_row, row, query_head), output,
           before);
  if (threadIdx.x == 0) {
    call.set_log_sum_exp(sequence.span.batch_row, row, query_head, shared.log_sum);
  }
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
