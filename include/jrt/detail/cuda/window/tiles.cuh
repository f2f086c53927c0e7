// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_pipeline.h>

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/mma.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/window/exponential.cuh"
#include "jrt/detail/cuda/window/sequence.cuh"
#include "jrt/detail/cuda/window/tile_layout.cuh"
#include "jrt/detail/cuda/window/tile_products.cuh"
#include "jrt/detail/cuda/window/tile_source.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/sequence_runs.hpp"
#include "jrt/detail/shared/window/online_softmax.hpp"

/// Prefill of window attention on the matrix unit, for 16-bit types. A block has four warps, each with some 16-row tiles of
/// queries, whose fragments stay in registers. Keys and values pass through shared memory in tiles of 64 tokens, a few of
/// them in flight; of each tile a warp takes the halves that its own window reaches, so that a window of 128 costs 32
/// queries 160 keys, not the 384 of square blocks. Scores become weights in registers (`OnlineSoftmax`).
///
///     128 queries 0 …, L = 128:   tile 0    tile 1    tile 2    tile 3      # a step of 32 keys that a warp takes:
///     keys                       −128 …     −64 …       0 …      64 …       the first has the window's edge in it,
///     warp 0, queries 0 …         #  #      #  #      #                     the last the diagonal
///     warp 1, queries 32 …           #      #  #      #  #
///     warp 2, queries 64 …                  #  #      #  #      #
///     warp 3, queries 96 …                     #      #  #      #  #
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

template <WindowConfig Config>
class WindowTiles {
 public:
  using Layout = WindowTileLayout<Config>;
  using Element = typename Config::Element;
  using Softmax = OnlineSoftmax<float, ScaledExponential>;
  static constexpr int row_tiles = Layout::row_tiles;
  static constexpr int left = Config::left_window;

  __device__ WindowTiles(const WindowCall<Config>& call, const WindowSequence<Config>& sequence, std::int64_t query_head,
                         std::int64_t first_row, Element* shared)
      : call_(call), sequence_(sequence), query_head_(query_head), first_row_(first_row), shared_(shared) {
    if constexpr (has_softmax_carry_in<Config>) {
#pragma unroll
      for (int m = 0; m < row_tiles; ++m) {
        softmax_[m][0].maximum = 0;
        softmax_[m][1].maximum = 0;
      }
    }
  }

  __device__ void run() {
    const std::int64_t first = first_row_ - sequence_.span.left_pad;
    const std::int64_t count = smaller<std::int64_t>(Layout::rows, sequence_.tokens - first);
    const std::int64_t lowest = sequence_.keys.lowest();
    const TokenRange range = keys_in_window(first, larger<std::int64_t>(count, 0), left, lowest);
    const std::int64_t begin = range.begin;
    const int tiles = static_cast<int>(ceil_div(range.end - begin, std::int64_t{Layout::tile_keys}));
    for (int i = 0; i < Layout::stages - 1; ++i) {
      source().fetch(begin, i, tiles, range);
    }
    read_queries();
    if constexpr (has_softmax_carry_in<Config>) {
      read_before();
    }
    for (int i = 0; i < tiles; ++i) {
      source().fetch(begin, i + Layout::stages - 1, tiles, range);
      __pipeline_wait_prior(Layout::stages - 1);
      __syncthreads();
      const std::int64_t tile = begin + std::int64_t{i} * Layout::tile_keys;
      source().rotate_keys(tile, i % Layout::stages, range.end);
      take_tile(tile - first, i % Layout::stages);
      __syncthreads();
    }
    write_outputs();
  }

 private:
  [[nodiscard]] __device__ WindowTileSource<Config> source() const {
    return {call_, sequence_, shared_};
  }
  static __device__ int lane() {
    return static_cast<int>(threadIdx.x) % 32;
  }
  static __device__ int warp() {
    return static_cast<int>(threadIdx.x) / 32;
  }
  /// First query of this warp, counted from the block's first.
  static __device__ int warp_first() {
    return warp() * Layout::warp_rows;
  }

  /// Fragments of this warp's queries, straight from memory.
  __device__ void read_queries() {
    const SequenceSpan& span = sequence_.span;
    const Pair signs = call_.scale < 0 ? 0x80008000u : 0u;
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::int64_t row = first_row_ + warp_first() + m * 16 + i * 8 + lane() / 4;
        const bool exists = row < span.row_tokens;
        const Element* const query =
            exists ? call_.query.row(span.batch_row, span.first_token + row, query_head_) + lane() % 4 * 2 : nullptr;
#pragma unroll
        for (int k = 0; k < Config::head_dim / 8; ++k) {
          queries_[m][k / 2][i + k % 2 * 2] = exists ? *reinterpret_cast<const Pair*>(query + k * 8) ^ signs : 0;
        }
        rotate_query(m, i, sequence_.keys.position(row - span.left_pad));
      }
    }
  }

  /// Loads the softmax carry-in from the outputs. Of the four lanes of a row, one holds its denominator and ε.
  __device__ void read_before() {
    const SequenceSpan& span = sequence_.span;
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::int64_t row = first_row_ + warp_first() + m * 16 + i * 8 + lane() / 4;
        if (!sequence_.has_token(row)) {
          continue;
        }
        const float before = call_.before.denominator(span.batch_row, span.first_token + row, query_head_);
        softmax_[m][i].denominator = lane() % 4 == 0 ? before + static_cast<float>(Config::epsilon) : 0;
        if (before == 0) {
          continue;
        }
        const Element* const output =
            call_.output.row(span.batch_row, span.first_token + row, query_head_) + lane() % 4 * 2;
#pragma unroll
        for (int n = 0; n < Config::value_dim / 8; ++n) {
          const Pair pair = *reinterpret_cast<const Pair*>(output + n * 8);
          outputs_[m][n].values[2 * i] = number_of<Element>(pair, 0) * before;
          outputs_[m][n].values[2 * i + 1] = number_of<Element>(pair, 1) * before;
        }
      }
    }
  }

  /// Both elements of a pair are in the same lane.
  __device__ void rotate_query(int m, int i, std::int64_t position) {
    if constexpr (Config::Rotary::rotates) {
      constexpr int half_blocks = Config::Rotary::half_dim / 8;
#pragma unroll
      for (int k = 0; k < half_blocks; ++k) {
        Pair& first = queries_[m][k / 2][i + k % 2 * 2];
        Pair& second = queries_[m][(k + half_blocks) / 2][i + (k + half_blocks) % 2 * 2];
        float a[2];
        float b[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          a[j] = number_of<Element>(first, j);
          b[j] = number_of<Element>(second, j);
          rotate_pair(rotation_for<Element>(call_.rotary, position, k * 8 + lane() % 4 * 2 + j), a[j], b[j]);
        }
        first = rounded_pair<Element>(a[0], a[1]);
        second = rounded_pair<Element>(b[0], b[1]);
      }
    }
  }

  /// Processes a tile whose first key is `tile` tokens after the block's first query.
  __device__ void take_tile(std::int64_t tile, int stage) {
#pragma unroll
    for (int step = 0; step < Layout::tile_keys; step += Layout::step_keys) {
      const std::int64_t distance = tile + step - warp_first();  // of the step's first key from the warp's first query
      if (distance + Layout::step_keys <= -left || distance >= Layout::warp_rows) {
        continue;
      }
      const int first = static_cast<int>(distance);  // fits: at most the window and a few tiles
      take_step(first, SharedNumbers(source().key_tile(stage) + step * Layout::key_stride),
                SharedNumbers(source().value_tile(stage) + step * Layout::value_stride));
    }
  }

  __device__ void take_step(int first, SharedNumbers keys, SharedNumbers values) {
    constexpr int tiles = Layout::step_keys / 8;
    Accumulator scores[row_tiles][tiles] = {};
#pragma unroll
    for (int k = 0; k < Config::head_dim / 16; ++k) {
#pragma unroll
      for (int n = 0; n < tiles; n += 2) {
        RightFragment right[2];
        load_right_transposed(right, keys + (n * 8 * Layout::key_stride + k * 16), Layout::key_stride, lane());
#pragma unroll
        for (int m = 0; m < row_tiles; ++m) {
          multiply_add_16bit<Element>(scores[m][n], queries_[m][k], right[0]);
          multiply_add_16bit<Element>(scores[m][n + 1], queries_[m][k], right[1]);
        }
      }
    }
    const bool hidden = first < Layout::warp_rows - 1 - left || first + Layout::step_keys - 1 > 0;
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) {
      if (hidden) {
        hide(scores[m], first - m * 16);
      }
      to_weights(scores[m], m);
    }
#pragma unroll
    for (int k = 0; k < Layout::step_keys / 16; ++k) {
      Pair weights[row_tiles][4];
#pragma unroll
      for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const Accumulator& from = scores[m][2 * k + i / 2];
          weights[m][i] = rounded_pair<Element>(from.values[i % 2 * 2], from.values[i % 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int n = 0; n < Config::value_dim / 8; n += 2) {
        RightFragment right[2];
        load_right(right, values + (k * 16 * Layout::value_stride + n * 8), Layout::value_stride, lane());
#pragma unroll
        for (int m = 0; m < row_tiles; ++m) {
          multiply_add_16bit<Element>(outputs_[m][n], weights[m], right[0]);
          multiply_add_16bit<Element>(outputs_[m][n + 1], weights[m], right[1]);
        }
      }
    }
  }

  /// Sets scores of keys that a query does not see to −∞. `first` is the step's first key, counted from the tile's first
  /// query.
  template <int tiles>
  static __device__ void hide(Accumulator (&scores)[tiles], int first) {
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = n * 8 + lane() % 4 * 2 + i % 2;
        const int distance = first + column - (lane() / 4 + i / 2 * 8);
        if (distance > 0 || distance < -left) {
          scores[n].values[i] = -INFINITY;
        }
      }
    }
  }

  /// Turns scores into weights; the outputs so far are rescaled to the new maximum. The queries have the scale's sign.
  template <int tiles>
  __device__ void to_weights(Accumulator (&scores)[tiles], int m) {
    const ScaledExponential exponential(call_.scale);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Softmax& softmax = softmax_[m][i];
      float most = softmax.maximum;
#pragma unroll
      for (int n = 0; n < tiles; ++n) {
        most = fmaxf(most, fmaxf(scores[n].values[2 * i], scores[n].values[2 * i + 1]));
      }
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      const float factor = softmax.absorb(most, exponential);
      float sum = 0;
#pragma unroll
      for (int n = 0; n < tiles; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& score = scores[n].values[2 * i + j];
          score = softmax.weight(score, exponential);
          sum += score;
        }
      }
      softmax.denominator += sum;
#pragma unroll
      for (int n = 0; n < Config::value_dim / 8; ++n) {
        outputs_[m][n].values[2 * i] *= factor;
        outputs_[m][n].values[2 * i + 1] *= factor;
      }
    }
  }

  /// Writes the outputs through shared memory, so that whole rows are stored.
  __device__ void write_outputs() {
    const SequenceSpan& span = sequence_.span;
    Element* const rows = shared_ + warp_first() * Layout::value_stride;
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        Softmax softmax = softmax_[m][i];
        softmax.denominator += __shfl_xor_sync(~0u, softmax.denominator, 1);
        softmax.denominator += __shfl_xor_sync(~0u, softmax.denominator, 2);
        const int row = m * 16 + i * 8 + lane() / 4;
        const std::int64_t row_of_span = first_row_ + warp_first() + row;
        const bool has_token = sequence_.has_token(row_of_span);
        const float inverse = has_token ? softmax.finish() : 0;
        if (lane() % 4 == 0 && row_of_span < span.row_tokens) {
          call_.set_log_sum_exp(span.batch_row, span.first_token + row_of_span, query_head_,
                                has_token ? softmax.log_sum(ScaledExponential(call_.scale)) : -INFINITY);
        }
#pragma unroll
        for (int n = 0; n < Config::value_dim / 8; ++n) {
          const Accumulator& from = outputs_[m][n];
          const bool is_token = inverse != 0;
          *reinterpret_cast<Pair*>(rows + row * Layout::value_stride + n * 8 + lane() % 4 * 2) =
              is_token ? rounded_pair<Element>(from.values[2 * i] * inverse, from.values[2 * i + 1] * inverse) : 0;
        }
      }
    }
    __syncwarp();
    constexpr int parts = Config::value_dim / 8;
    for (int i = lane(); i < Layout::warp_rows * parts; i += 32) {
      const std::int64_t row = first_row_ + warp_first() + i / parts;
      if (row < span.row_tokens) {
        store_vector(call_.output.row(span.batch_row, span.first_token + row, query_head_) + i % parts * 8,
                     load_vector<8>(rows + i / parts * Layout::value_stride + i % parts * 8));
      }
    }
  }

  const WindowCall<Config>& call_;
  const WindowSequence<Config>& sequence_;
  std::int64_t query_head_;
  std::int64_t first_row_;
  Element* shared_;
  Pair queries_[row_tiles][Config::head_dim / 16][4];
  Accumulator outputs_[row_tiles][Config::value_dim / 8] = {};
  Softmax softmax_[row_tiles][2];  // of this lane's scores; the maximum is the row's
};

extern __shared__ __align__(16) std::byte window_shared_memory[];

/// One block per run of rows and query head.
template <WindowConfig Config>
__global__ void __launch_bounds__(WindowTileLayout<Config>::threads, WindowTileLayout<Config>::blocks_per_multiprocessor)
    window_tiles(const __grid_constant__ WindowCall<Config> call, std::int64_t runs) {
  const std::int64_t query_head = blockIdx.x / runs;
  RowRun run(call.sequences, call.query.tokens, blockIdx.x % runs, WindowTileLayout<Config>::rows);
  run.first_row += call.first_output(run.b);
  const WindowSequence<Config> sequence(call, run.b, query_head / call.group());
  if (!run.within(sequence.span)) {
    return;
  }
  WindowTiles<Config> tiles(call, sequence, query_head, run.first_row,
                            reinterpret_cast<typename Config::Element*>(window_shared_memory));
  tiles.run();
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
