// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include <cstdint>
#include <jrt/numeric.hpp>
#include <jrt/policy/rotary.hpp>

namespace jrt_lm {

/// What a tiled product does with its sums.
enum class Finish {
  stores,   ///< y = sums in bfloat16
  rotates,  ///< the same of heads of 64 outputs, of which the first ones are turned by their row's position
  gates,  ///< y = silu(sums of the gates) sums, in bfloat16; W has a gate's row for each of the outputs behind all of these
  adds,   ///< the residual stream += sums, in float
  /// y = convolution of the sums over the rows, times the sums of the gates, which are as with `gates`. Those of a tile's
  /// first rows need the tile above: what it takes to make them is left in TiledJob::edges (convolved_tiles.cuh).
  convolves,
};

/// Threads: a group of four warps of which one copies, and two which multiply 64 rows each.
inline constexpr int tiled_threads = 384;
inline constexpr int tile_rows = 128;
inline constexpr int tile_depth = 64;  ///< of a slot of the ring: 128 bytes of each row

/// Taps of the convolution behind a product.
inline constexpr int tiled_taps = 3;

/// Whether W has a row of a gate for each output.
template <Finish finish>
inline constexpr bool has_gates = finish == Finish::gates || finish == Finish::convolves;

/// How a product is divided: blocks have tiles of 128 rows by `columns` sums, gates among these. `splits` (1 or 2) blocks,
/// then a cluster, have one tile together, of which each multiplies a part of the depth.
template <Finish finish_, int columns_, int splits_ = 1>
struct Tiling {
  static constexpr Finish finish = finish_;
  static constexpr int columns = columns_;
  static constexpr int splits = splits_;
  static constexpr int outputs = has_gates<finish> ? columns / 2 : columns;
  static constexpr int sums = columns / 2;  ///< of a thread

  // Shared memory. Copies begin at multiples of 1024 bytes.
  static constexpr int x_bytes = tile_rows * 128;
  static constexpr int slot_bytes = x_bytes + columns * 128;
  /// A warp's staged 16 rows: blocks of 64 numbers of bfloat16, at most three at a time.
  static constexpr int staged_blocks = outputs % 192 == 0 ? 3 : outputs >= 128 && finish != Finish::convolves ? 2 : 1;
  static constexpr int staged_bytes = staged_blocks * 16 * 128;
  static constexpr int stream_bytes = finish == Finish::adds ? 16 * outputs * 4 : 0;  ///< of a warp's rows
  static constexpr int finishing_warps = 8 / splits;
  static constexpr int exchange_bytes = splits > 1 ? 128 * sums * 4 : 0;
  /// Biases; weights of the norm, or biases and weights of the convolution.
  static constexpr int addend_bytes =
      (finish == Finish::adds ? 2 * columns : columns + (finish == Finish::convolves ? (1 + tiled_taps) * outputs : 0)) * 4;
  /// Of all warps, twice: the last inputs of the convolution in the rows of each.
  static constexpr int edge_bytes = finish == Finish::convolves ? 2 * 8 * (tiled_taps - 1) * outputs * 2 : 0;
  static constexpr int other_bytes =
      finishing_warps * (staged_bytes + stream_bytes) + exchange_bytes + 2 * addend_bytes + edge_bytes + 512;
  static constexpr int fitting_slots = (232448 - other_bytes) / slot_bytes;
  static constexpr int slots = fitting_slots < 8 ? fitting_slots : 8;
  static constexpr int ring_at = 0;
  static constexpr int staged_at = slots * slot_bytes;
  static constexpr int stream_at = staged_at + finishing_warps * staged_bytes;
  static constexpr int exchange_at = stream_at + finishing_warps * stream_bytes;
  static constexpr int addends_at = exchange_at + exchange_bytes;
  static constexpr int edges_at = addends_at + 2 * addend_bytes;
  static constexpr int barriers_at = edges_at + edge_bytes;
  static constexpr int shared_bytes = barriers_at + 512;
  static_assert(slots >= 3 && shared_bytes <= 232448);
  static_assert(stream_bytes % 1024 == 0 && staged_bytes % 1024 == 0 && exchange_bytes % 1024 == 0);
};

/// A product y = f(x) Wᵀ + bias of bfloat16 numbers.
struct TiledJob {
  CUtensorMap x;       ///< boxes of 128 rows
  CUtensorMap weight;  ///< boxes of columns / 2 rows
  CUtensorMap y;  ///< (rows, outputs) in bfloat16, boxes of 16 rows; with `adds` the stream times the next norm's weights
  CUtensorMap stream;  ///< (rows, outputs) in float, boxes of 16 rows, of `adds`
  int rows;
  int in;
  int outputs;
  const void* bias;      ///< bfloat16, with `adds` float; null: none
  const float* squares;  ///< of the norm before: (rows, square_parts) of x's rows; null: x is as it is
  int square_parts;
  float per_width;  ///< 1 / width
  float epsilon;
  const float* norm_weight;  ///< of the norm behind, with `adds`; null: neither y nor new_squares are written
  float* new_squares;        ///< (rows, tiles across)
  // Of `convolves`:
  const jrt::BFloat16* filter;       ///< (outputs, taps)
  const jrt::BFloat16* filter_bias;  ///< null: none
  jrt::BFloat16* edges;              ///< (tiles down, 3, taps - 1, outputs): first inputs, first gates, last inputs
  jrt::BFloat16* last_inputs;        ///< (taps - 1, outputs): of the rows before `*row_count`
  const std::int32_t* row_count;
  // Of `rotates`:
  std::uint64_t turns[32];        ///< of each pair of a head from a position to the next (jrt::RotaryHalves)
  const std::int32_t* positions;  ///< of the rows; no kernel writes them
  int turned_heads;
};

}  // namespace jrt_lm
