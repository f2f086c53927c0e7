// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/host_device.hpp"
#include "jrt/detail/integer.hpp"

/// Tiles of keys that a run of tiles of queries sees through a window (window_range.hpp).
namespace jrt::detail {

/// A run of tiles of `tile` queries of one sequence, whose window has `left` keys to the left. Tile j of keys is
/// `window_tiles` − 1 tiles to the left of tile j of queries, so tile i of queries sees tiles i … i + `window_tiles` − 1 of
/// keys.
///
/// Tokens are counted as in window_range.hpp, but in 32-bit integers: the copy engine takes no others, and kernels have no
/// registers to spare.
template <int tile, int left>
struct WindowTileRun {
  static constexpr int window_tiles = ceil_div(left, tile) + 1;  // seen by one tile of queries

  int first_token = 0;  // of the run
  int tokens = 0;       // of the sequence
  int lowest = 0;       // lowest visible token
  int tiles = 0;        // of queries

  /// At most `max_tiles` tiles of the sequence's tokens from `first` on; none if there are no such tokens.
  JRT_DETAIL_HD constexpr WindowTileRun(int first, int sequence_tokens, int lowest_token, int max_tiles)
      : first_token(first),
        tokens(sequence_tokens),
        lowest(lowest_token),
        tiles(smaller(max_tiles, ceil_div(larger(0, sequence_tokens - first), tile))) {}

  [[nodiscard]] JRT_DETAIL_HD constexpr int key_tiles() const { return tiles + window_tiles - 1; }
  /// First token of tile j of keys.
  [[nodiscard]] JRT_DETAIL_HD constexpr int key_token(int j) const { return first_token + (j - (window_tiles - 1)) * tile; }
};

}  // namespace jrt::detail
