// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_pipeline.h>

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/mma.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/window/backward_layout.cuh"
#include "jrt/detail/cuda/window/backward_source.cuh"
#include "jrt/detail/cuda/window/exponential.cuh"
#include "jrt/detail/cuda/window/sequence.cuh"
#include "jrt/detail/cuda/window/tile_products.cuh"
#include "jrt/detail/plan/sequence_runs.hpp"
#include "jrt/detail/shared/window/backward_call.hpp"

/// Gradients of window attention on the matrix unit, for 16-bit types, without atomics: one kernel for those of queries,
/// one for those of keys and values. A block owns a tile of 64 rows, 16 for each of its four warps, and passes over the
/// tiles of other rows that the window joins to them, two of which are in shared memory at a time:
///
///                             own rows    other rows                S           dP          sums in registers
///     window_query_gradients  Q, dY       K, V                      Q · Kᵀ      dY · Vᵀ     dQ += dS · K
///     window_key_gradients    K, V        Q, dY of all query heads  K · Qᵀ      V · dYᵀ     dK += dSᵀ · Q, dV += Pᵀ · dY
///
/// The second kernel forms the transposes of S and P, so that both take weights from accumulators to left operands without
/// leaving registers. The first also finds dy · y and leaves it, with log Σ e^s, in the workspace for the second.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

template <WindowConfig Config, bool of_keys>
class WindowBackwardTiles {
 public:
  using Layout = WindowBackwardLayout<Config>;
  using Element = typename Config::Element;
  using Call = WindowBackwardCall<Config>;
  using RowSums = typename Layout::RowSums;
  using Source = WindowBackwardSource<Config, of_keys>;
  static constexpr int head_dim = Config::head_dim;
  static constexpr int value_dim = Config::value_dim;
  static constexpr int tile = Layout::tile;
  static constexpr int step = Layout::step;
  static constexpr int left = Config::left_window;
  static constexpr float log2e = 1.4426950408889634F;

  explicit __device__ WindowBackwardTiles(const Source& source)
      : source_(source), call_(source.call), scale_(static_cast<float>(source.call.scale) * log2e) {}

  __device__ void run() {
    const int steps = of_keys || call_.wants_query() ? source_.steps() : 0;
    source_.fetch_own();
    for (int i = 0; i < Layout::stages - 1; ++i) {
      source_.fetch(i, steps);
    }
    __pipeline_wait_prior(Layout::stages - 1);
    __syncthreads();
    if constexpr (!of_keys) {
      find_row_sums();
    }
    source_.rotate_rows(source_.own_heads(), source_.first);
    __syncthreads();
    read_own();
    for (int i = 0; i < steps; ++i) {
      source_.fetch(i + Layout::stages - 1, steps);
      __pipeline_wait_prior(Layout::stages - 1);
      __syncthreads();
      const int stage = i % Layout::stages;
      const int token = source_.other_token(i);
      if constexpr (Config::Rotary::rotates) {
        source_.rotate_rows(source_.other_heads(stage), token);
        __syncthreads();
      }
      take_tile(token - source_.first, stage);
      __syncthreads();
    }
    write_gradients();
  }

 private:
  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  /// First row of this warp in the tile.
  static __device__ int warp_first() { return static_cast<int>(threadIdx.x) / 32 * 16; }
  /// The sums of the own rows, two threads to a row: to shared memory, and to the workspace for the other kernel.
  __device__ void find_row_sums() const {
    const int row = static_cast<int>(threadIdx.x) / 2;
    const int token = source_.first + row;
    const bool exists = source_.is_token(token);
    float delta = 0;
    if (exists) {
      const Element* const output = call_.output.row(source_.span.batch_row, source_.view_token(token), source_.head);
      const Element* const gradient = source_.own_values() + row * Layout::value_stride;
#pragma unroll
      for (int column = static_cast<int>(threadIdx.x) % 2 * 8; column < value_dim; column += 16) {
        const auto y = load_vector<8>(output + column);
        const auto dy = load_vector<8>(gradient + column);
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          delta += convert<float>(y[c]) * convert<float>(dy[c]);
        }
      }
    }
    delta += __shfl_xor_sync(~0u, delta, 1);
    if (threadIdx.x % 2 == 0) {
      RowSums sums{INFINITY, delta};
      if (exists) {
        const float log_sum = *call_.log_sum_exp.row(source_.span.batch_row, source_.view_token(token), source_.head);
        sums.log_sum = log_sum == -INFINITY ? INFINITY : log_sum * log2e;
        *source_.row_sums(source_.head, token) = sums;
      }
      source_.own_sums()[row] = sums;
    }
  }

  /// Narrow own rows stay in registers.
  __device__ void read_own() {
    if constexpr (Layout::narrow) {
#pragma unroll
      for (int k = 0; k < head_dim / 16; ++k) {
        own_head_[k] = own_fragment(source_.own_heads(), Layout::head_stride, k);
      }
#pragma unroll
      for (int k = 0; k < value_dim / 16; ++k) {
        own_value_[k] = own_fragment(source_.own_values(), Layout::value_stride, k);
      }
    }
    if constexpr (!of_keys) {
      own_sums_[0] = source_.own_sums()[warp_first() + lane() / 4];
      own_sums_[1] = source_.own_sums()[warp_first() + lane() / 4 + 8];
    }
  }
  [[nodiscard]] __device__ LeftFragment own_fragment(const Element* rows, int stride, int k) const {
    return load_left(SharedNumbers(rows) + (warp_first() * stride + k * 16), stride, lane());
  }
  [[nodiscard]] __device__ LeftFragment own_head(int k) const {
    if constexpr (Layout::narrow) {
      return own_head_[k];
    } else {
      return own_fragment(source_.own_heads(), Layout::head_stride, k);
    }
  }
  [[nodiscard]] __device__ LeftFragment own_value(int k) const {
    if constexpr (Layout::narrow) {
      return own_value_[k];
    } else {
      return own_fragment(source_.own_values(), Layout::value_stride, k);
    }
  }

  // A pair (own row, other row) is visible if its distance, other − own, is in this range.
  static constexpr int least_distance = of_keys ? 0 : -left;
  static constexpr int most_distance = of_keys ? left : 0;

  /// Processes a tile of other rows whose first is `distance` tokens after the block's first own row.
  __device__ void take_tile(int distance, int stage) {
    const SharedNumbers heads(source_.other_heads(stage));
    const SharedNumbers values(source_.other_values(stage));
#pragma unroll 1
    for (int at = 0; at < tile; at += step) {
      const int first = distance + at - warp_first();  // of the step's first row from the warp's first
      if (first + step - 1 >= least_distance && first - 15 <= most_distance) {
        take_step(first, heads + at * Layout::head_stride, values + at * Layout::value_stride,
                  source_.other_sums(stage) + at);
      }
    }
  }

  __device__ void take_step(int first, SharedNumbers heads, SharedNumbers values, const RowSums* sums) {
    Accumulator weights[step / 8] = {};
    Accumulator gradients[step / 8] = {};
    const bool wants_scores = !of_keys || call_.wants_key();
#pragma unroll
    for (int k = 0; k < head_dim / 16; ++k) {
      add_products(weights, own_head(k), heads + k * 16, Layout::head_stride);
    }
    if (wants_scores) {
#pragma unroll
      for (int k = 0; k < value_dim / 16; ++k) {
        add_products(gradients, own_value(k), values + k * 16, Layout::value_stride);
      }
    }
    const bool hidden = first - 15 < least_distance || first + step - 1 > most_distance;
    to_weights(weights, gradients, hidden, first, sums);
#pragma unroll
    for (int k = 0; k < step / 16; ++k) {
      if (wants_scores) {
        add_weighted<head_dim>(head_gradients_, gradients + 2 * k, heads + k * 16 * Layout::head_stride,
                               Layout::head_stride);
      }
      if constexpr (of_keys) {
        if (call_.wants_value()) {
          add_weighted<value_dim>(value_gradients_, weights + 2 * k, values + k * 16 * Layout::value_stride,
                                  Layout::value_stride);
        }
      }
    }
  }

  /// sums += own · otherᵀ over 16 columns of both.
  static __device__ void add_products(Accumulator (&sums)[step / 8], const LeftFragment& own, SharedNumbers others,
                                      int stride) {
#pragma unroll
    for (int n = 0; n < step / 8; n += 2) {
      RightFragment right[2];
      load_right_transposed(right, others + n * 8 * stride, stride, lane());
      multiply_add_16bit<Element>(sums[n], own.pairs, right[0]);
      multiply_add_16bit<Element>(sums[n + 1], own.pairs, right[1]);
    }
  }

  /// sums += factors · others over 16 rows of others.
  template <int dim>
  static __device__ void add_weighted(Accumulator (&sums)[dim / 8], const Accumulator* factors, SharedNumbers others,
                                      int stride) {
    Pair pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      pairs[i] = rounded_pair<Element>(factors[i / 2].values[i % 2 * 2], factors[i / 2].values[i % 2 * 2 + 1]);
    }
#pragma unroll
    for (int n = 0; n < dim / 8; n += 2) {
      RightFragment right[2];
      load_right(right, others + n * 8, stride, lane());
      multiply_add_16bit<Element>(sums[n], pairs, right[0]);
      multiply_add_16bit<Element>(sums[n + 1], pairs, right[1]);
    }
  }

  /// Scores become weights P, and gradients of weights those of scores.
  __device__ void to_weights(Accumulator (&weights)[step / 8], Accumulator (&gradients)[step / 8], bool hidden, int first,
                             const RowSums* sums) const {
#pragma unroll
    for (int n = 0; n < step / 8; ++n) {
      RowSums of_columns[2];
      if constexpr (of_keys) {
        const auto both = load_vector<4>(reinterpret_cast<const float*>(sums + n * 8 + lane() % 4 * 2));
        of_columns[0] = {both[0], both[1]};
        of_columns[1] = {both[2], both[3]};
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const RowSums of_query = of_keys ? of_columns[i % 2] : own_sums_[i / 2];
        float weight = power_of_two(weights[n].values[i] * scale_ - of_query.log_sum);
        if (hidden) {
          const int distance = first + n * 8 + lane() % 4 * 2 + i % 2 - (lane() / 4 + i / 2 * 8);
          weight = distance < least_distance || distance > most_distance ? 0 : weight;
        }
        weights[n].values[i] = weight;
        gradients[n].values[i] = weight * (gradients[n].values[i] - of_query.delta);
      }
    }
  }

  __device__ void write_gradients() {
    if (of_keys ? call_.wants_key() : call_.wants_query()) {
      finish_head_gradients();
      write_rows<head_dim>(head_gradients_, source_.own_heads(), of_keys ? call_.key_gradient : call_.query_gradient);
    }
    if constexpr (of_keys) {
      if (call_.wants_value()) {
        write_rows<value_dim>(value_gradients_, source_.own_values(), call_.value_gradient);
      }
    }
  }

  /// Gradients of queries and keys, times the scale and rotated back. Both elements of a pair are in the same lane.
  __device__ void finish_head_gradients() {
    const auto scale = static_cast<float>(call_.scale);
#pragma unroll
    for (int n = 0; n < head_dim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        head_gradients_[n].values[i] *= scale;
      }
    }
    if constexpr (Config::Rotary::rotates) {
      constexpr int half_blocks = Config::Rotary::half_dim / 8;
#pragma unroll
      for (int n = 0; n < half_blocks; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int token = source_.first + warp_first() + lane() / 4 + i / 2 * 8;
          Rotation<float> rotation = rotation_for<Element>(call_.rotary, token, n * 8 + lane() % 4 * 2 + i % 2);
          rotation.sine = -rotation.sine;
          rotate_pair(rotation, head_gradients_[n].values[i], head_gradients_[n + half_blocks].values[i]);
        }
      }
    }
  }

  /// Writes rows through shared memory, where this warp's own rows were, so that whole rows are stored.
  template <int dim>
  __device__ void write_rows(const Accumulator (&sums)[dim / 8], Element* own, const TensorView<Element>& view) const {
    constexpr int stride = dim + Layout::padding;
    Element* const rows = own + warp_first() * stride;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = i * 8 + lane() / 4;
      const bool is_token = source_.is_token(source_.first + warp_first() + row);
#pragma unroll
      for (int n = 0; n < dim / 8; ++n) {
        *reinterpret_cast<Pair*>(rows + row * stride + n * 8 + lane() % 4 * 2) =
            is_token ? rounded_pair<Element>(sums[n].values[2 * i], sums[n].values[2 * i + 1]) : 0;
      }
    }
    __syncwarp();
    constexpr int parts = dim / 8;
    for (int i = lane(); i < 16 * parts; i += 32) {
      const std::int64_t row = source_.span.left_pad + source_.first + warp_first() + i / parts;
      if (row < source_.span.row_tokens) {
        Element* const to = view.row(source_.span.batch_row, source_.span.first_token + row, source_.head) + i % parts * 8;
        auto numbers = load_vector<8>(rows + i / parts * stride + i % parts * 8);
        if constexpr (adds_gradients<Config>) {
          const auto there = load_vector<8>(to);
#pragma unroll
          for (int c = 0; c < 8; ++c) {
            numbers[c] = convert<Element>(convert<float>(numbers[c]) + convert<float>(there[c]));
          }
        }
        store_vector(to, numbers);
      }
    }
  }

  const Source& source_;
  const Call& call_;
  float scale_;  // of scores, for powers of two
  RowSums own_sums_[2] = {};
  LeftFragment own_head_[Layout::narrow ? head_dim / 16 : 1];
  LeftFragment own_value_[Layout::narrow ? value_dim / 16 : 1];
  Accumulator head_gradients_[head_dim / 8] = {};
  Accumulator value_gradients_[of_keys ? value_dim / 8 : 1] = {};
};

extern __shared__ __align__(16) std::byte window_backward_shared_memory[];

template <bool of_keys, WindowConfig Config>
__device__ void write_window_gradients(const WindowBackwardCall<Config>& call, WindowRowSums<float>* row_sums,
                                       std::int64_t runs) {
  const std::int64_t head = blockIdx.x / runs;
  const RowRun run(call.sequences, call.query.tokens, blockIdx.x % runs, WindowBackwardLayout<Config>::tile);
  const SequenceSpan span = call.span(run.b);
  if (run.within(span)) {
    const WindowBackwardSource<Config, of_keys> source(call, row_sums, span, head, run.first_row,
                                                       window_backward_shared_memory);
    WindowBackwardTiles<Config, of_keys>(source).run();
  }
}

/// One block per run of rows and query head. Also writes the row sums, which the kernel below reads.
template <WindowConfig Config>
__global__ void __launch_bounds__(WindowBackwardLayout<Config>::threads, WindowBackwardLayout<Config>::query_blocks)
    window_query_gradients(const __grid_constant__ WindowBackwardCall<Config> call, WindowRowSums<float>* row_sums,
                           std::int64_t runs) {
  write_window_gradients<false>(call, row_sums, runs);
}

/// One block per run of rows and key/value head.
template <WindowConfig Config>
__global__ void __launch_bounds__(WindowBackwardLayout<Config>::threads, WindowBackwardLayout<Config>::key_blocks)
    window_key_gradients(const __grid_constant__ WindowBackwardCall<Config> call, WindowRowSums<float>* row_sums,
                         std::int64_t runs) {
  write_window_gradients<true>(call, row_sums, runs);
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
