// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/instructions.cuh"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/cuda/window/sequence.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/window_tiles.hpp"
#include "jrt/policy/rotary.hpp"

/// Prefill of window attention on Hopper GPUs. A block walks along a long run of queries of one head, in tiles of 64. Keys
/// and values pass once, through a ring in shared memory that the copy engine fills well ahead; three groups of four warps
/// (two for wide heads) take the tiles of queries in turn. A window of 128 is three tiles of keys, whose 192 scores are
/// formed at once for a query: no sum is ever rescaled.
///
///     queries, tile i         0    1    2    3    4         worker i mod 3
///     keys, tile j       0 1 2    3    4    5    6          tile i needs j = i … i + 2; 0 and 1 lie before the run
///     ring                    [ 2 | 3 | 4 | 5 | 6 | 7 | … ]
///
///     scores of a tile: 16 rows a warp, in blocks of 16 columns   # masked   . hidden: neither exponential nor weight
///       j = i          j = i + 1      j = i + 2
///       # x x x        x x x x        # . . .                     warp 0
///       . # x x        x x x x        x # . .                     warp 1
///       . . # x        x x x x        x x # .                     warp 2
///       . . . #        x x x x        x x x #                     warp 3
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

template <WindowConfig Config>
struct HopperWindowLayout {
  using Element = typename Config::Element;
  static constexpr int head_dim = Config::head_dim;
  static constexpr int value_dim = Config::value_dim;
  static constexpr int tile = 64;  // tokens

  // In shared memory a tile is panels of 64 elements per row, 128 bytes, as the copy engine swizzles them; past the last
  // element of a head it writes zeros.
  static constexpr int panel_columns = 64;
  static constexpr int panel_row = 128;
  static constexpr int panel_bytes = tile * panel_row;
  static constexpr int key_panels = ceil_div(head_dim, panel_columns);
  static constexpr int value_panels = ceil_div(value_dim, panel_columns);
  static constexpr int panels = larger(key_panels, value_panels);
  static constexpr int first_columns = smaller(value_dim, panel_columns);
  static constexpr int other_columns = larger(16, value_dim - panel_columns);  // 16 where there are none

  using TileRun = WindowTileRun<tile, Config::left_window>;
  static constexpr int window_tiles = TileRun::window_tiles;  // seen by one tile of queries
  static constexpr HopperWindowTuning tuning = hopper_window_tuning;
  static constexpr int group_tiles =
      window_tiles <= tuning.max_tiles_at_a_time ? window_tiles : tuning.tiles_of_long_windows;
  static constexpr bool narrow = panels == 1;
  static constexpr int workers = narrow ? tuning.narrow_workers : tuning.wide_workers;
  static constexpr int threads = 128 * (1 + workers);
  static constexpr int worker_registers = narrow ? tuning.narrow_registers : tuning.wide_registers;
  static constexpr int copier_registers = tuning.copier_registers;

  static constexpr int key_bytes = key_panels * panel_bytes;
  static constexpr int stage_bytes = key_bytes + value_panels * panel_bytes;

  static constexpr bool rotates = Config::Rotary::rotates;
  static constexpr bool carries = has_softmax_carry_in<Config>;  // is loaded with the queries
  static constexpr int rotators = 3;  // warps that rotate keys and queries: those of the copier's four that copy nothing

  // A buffer of queries holds their outputs afterwards: in the queries' place, or in that of the outputs so far.
  static constexpr int output_offset = carries ? key_bytes : 0;
  static constexpr int query_bytes = carries ? key_bytes + value_panels * panel_bytes : panels * panel_bytes;
  static constexpr int barrier_bytes = 1024;
  static constexpr int max_bytes = static_cast<int>(shared_bytes_sm90);
  static constexpr int stages_beside(int buffers) {
    return (max_bytes - barrier_bytes - workers * buffers * query_bytes) / stage_bytes;
  }
  static constexpr int min_stages = window_tiles + workers;  // tiles that the workers read and those in flight
  static constexpr int query_buffers =                       // of a worker
      rotates && narrow && stages_beside(tuning.rotated_query_buffers) >= min_stages ? tuning.rotated_query_buffers
                                                                                     : tuning.query_buffers;
  static constexpr int stages = stages_beside(query_buffers);

  // Shared memory starts after the 1024 bytes that CUDA reserves (checked by the kernel).
  static constexpr SharedAddress base = 1024;
  static constexpr SharedAddress full = base;               // [stages]
  static constexpr SharedAddress free = full + 8 * stages;  // [stages]
  static constexpr SharedAddress query_full = free + 8 * stages;
  static constexpr SharedAddress query_free = query_full + 8 * workers * query_buffers;
  static constexpr SharedAddress ready = query_free + 8 * workers * query_buffers;  // [stages]; rotated
  static constexpr SharedAddress query_ready = ready + 8 * stages;
  static constexpr SharedAddress queries = base + barrier_bytes;
  static constexpr SharedAddress ring = queries + workers * query_buffers * query_bytes;
  static constexpr SharedAddress end = ring + stages * stage_bytes;
  static constexpr std::size_t shared_bytes = end - base;

  /// Rows of multiples of 16 elements, no rotation of the user's own, and a ring that is long enough.
  static constexpr bool supported = sizeof(Element) == 2 && head_dim % 16 == 0 && value_dim % 16 == 0 && head_dim <= 128 &&
                                    value_dim <= 128 &&
                                    (!rotates || is_rotary_halves<typename Config::Rotary>)&&stages >= min_stages &&
                                    query_ready + 8 * workers * query_buffers <= queries;
};

template <WindowConfig Config>
struct HopperWindowCall {
  WindowCall<Config> window;
  CUtensorMap query;
  CUtensorMap key;
  CUtensorMap value;
  CUtensorMap before;     // outputs so far, of a softmax carry-in
  std::int64_t runs = 0;  // of rows, in all sequences
  int run_tiles = 0;      // tiles of rows in a run
};

/// Where tile j of keys is in the ring of stages, kept along as divisions would take many instructions.
template <int stages>
struct RingPlace {
  int stage = 0;
  std::uint32_t parity = 0;  // of the laps before

  /// The place `tiles` further on, at most `stages`.
  [[nodiscard]] __device__ RingPlace after(int tiles) const {
    const int next = stage + tiles;
    return next < stages ? RingPlace{next, parity} : RingPlace{next - stages, parity ^ 1};
  }
};

/// The tiles of one block, and where they are in the views and in shared memory.
template <WindowConfig Config>
struct HopperWindowRun : HopperWindowLayout<Config>::TileRun {
  using Layout = HopperWindowLayout<Config>;

  int sequence;    // of the call
  int query_head;  // of the views
  int batch_row;
  int row;  // of the views, with token 0 of the sequence

  __device__ HopperWindowRun(const WindowSequence<Config>& of, std::int64_t b, std::int64_t head, std::int64_t first,
                             int run_tiles)
      : Layout::TileRun(warp_uniform(static_cast<int>(first)), warp_uniform(static_cast<int>(of.tokens)),
                        warp_uniform(static_cast<int>(of.keys.lowest())), run_tiles),
        sequence(warp_uniform(static_cast<int>(b))),
        query_head(warp_uniform(static_cast<int>(head))),
        batch_row(warp_uniform(static_cast<int>(of.span.batch_row))),
        row(warp_uniform(static_cast<int>(of.span.first_token + of.span.left_pad))) {}

  static __device__ SharedAddress keys(int stage) { return Layout::ring + stage * Layout::stage_bytes; }
  static __device__ SharedAddress values(int stage) { return keys(stage) + Layout::key_bytes; }
  /// Buffer of a worker's turn: its turn-th tile of queries.
  static __device__ int buffer(int worker, int turn) {
    return worker * Layout::query_buffers + turn % Layout::query_buffers;
  }
  static __device__ SharedAddress queries(int buffer) { return Layout::queries + buffer * Layout::query_bytes; }
  static __device__ SharedAddress outputs(int buffer) { return queries(buffer) + Layout::output_offset; }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
