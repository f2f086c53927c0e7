// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <jrt/detail/host_device.hpp>
#include <numeric>
#include <vector>

/// A decode step of a whole model as a list of stages, which one kernel works through (step_kernel.cuh). All blocks do a
/// part of each stage. What stages read of one another lies in memory for exchange (step_exchange.cuh), where each stage
/// writes to a place of its own; the residual stream stays with the blocks that add to it. The list is made once, on the
/// host, for a number of rows and of blocks.
namespace jrt_lm {

/// Rows of a product's result are made in tiles of 8; a product's weights travel to shared memory in pieces of 512 columns.
inline constexpr int step_rows = 16;
inline constexpr int tile_outputs = 8;
inline constexpr int chunk_columns = 32;  ///< of a warp
inline constexpr int piece_columns = 512;
inline constexpr int slot_pieces = 4;  ///< of a slot of the ring that they travel through

enum class StageKind : std::int32_t {
  embed,      ///< r = table row of each token; y = norm r, and squares of r
  stores,     ///< y = W x / |x| + bias
  convolves,  ///< W has twice as many rows: y = convolution step of the first half times the second
  rotates,    ///< y = W x / |x| + bias, heads rotated by their positions where they are queries or keys
  gates,      ///< W has twice as many rows: y = first half times silu(second half)
  adds,       ///< r += W x + bias; y = norm r, and squares of r
  linear,     ///< y = linear attention's step of x, of one or several tokens of each sequence
  window,     ///< y = window's step of x, likewise
  logits,     ///< result = W x / |x|, and each block's likeliest tokens
  likeliest,  ///< result = the likeliest token of each row
};

/// One stage. Pointers are the device's, places are bytes in the memory for exchange; which type is there follows from
/// `kind`.
struct alignas(16) Stage {
  StageKind kind = StageKind::embed;
  std::int32_t in = 0;          ///< columns of W
  std::int32_t outputs = 0;     ///< columns of y that are written
  std::int32_t tiles = 0;       ///< of 8 outputs, or of 8 and 8 that belong together; 0 where there are none
  std::int32_t first_tile = 0;  ///< of a block: its own, as it works through the stages; it has each `blocks`-th from there
  std::int32_t half = 0;        ///< `rotates`: half a head
  std::int32_t x_columns = 0;   ///< from a row to the next
  std::int32_t y_columns = 0;
  std::int32_t x = 0;
  std::int32_t y = 0;
  std::int32_t x_squares = 0;  ///< of each row, those of 8 neighbours added up; unused where x is not normalised
  std::int32_t y_squares = 0;
  std::int32_t encoder = 0;  ///< `linear`, of a prompt: its encoder region's keys and values
  std::int32_t encoder_columns = 0;
  const void* weight = nullptr;
  const void* bias = nullptr;
  const float* norm = nullptr;  ///< of the residual stream: times this it is y
  void* result = nullptr;
  const void* filter = nullptr;  ///< of a convolution
  const void* filter_bias = nullptr;
  void* state = nullptr;   ///< of a mixer: slot 0
  void* staged = nullptr;  ///< of a mixer: (rows, heads, numbers of a token), so that the states stay as they are; or null
};

[[nodiscard]] JRT_DETAIL_HD constexpr bool is_product(StageKind kind) {
  return kind != StageKind::embed && kind != StageKind::linear && kind != StageKind::window && kind != StageKind::likeliest;
}
/// Whether the product's x comes from the residual stream.
[[nodiscard]] JRT_DETAIL_HD constexpr bool is_normed(StageKind kind) {
  return is_product(kind) && kind != StageKind::adds;
}
/// Tiles of 8 rows of W that make one tile of outputs.
[[nodiscard]] JRT_DETAIL_HD constexpr int tile_parts(StageKind kind) {
  return kind == StageKind::convolves || kind == StageKind::rotates || kind == StageKind::gates ? 2 : 1;
}
/// The first of the 8 rows of W for a part of a tile.
[[nodiscard]] JRT_DETAIL_HD constexpr int tile_row(const Stage& stage, int tile, int part) {
  if (stage.kind == StageKind::rotates) {
    const int tiles_of_head = stage.half / tile_outputs;
    return tile / tiles_of_head * 2 * stage.half + tile % tiles_of_head * tile_outputs + part * stage.half;
  }
  return tile * tile_outputs + part * stage.outputs;
}
[[nodiscard]] JRT_DETAIL_HD constexpr int pieces_of(int in) {
  return (in + piece_columns - 1) / piece_columns;
}
/// Tiles of the residual stream that a block has at most.
[[nodiscard]] JRT_DETAIL_HD constexpr int residual_tiles(int width, int blocks) {
  return (width / tile_outputs + blocks - 1) / blocks;
}

/// How a round's weights lie in the ring: `pieces` of each of some tiles, some pieces of all tiles at a time, so that these
/// can be in registers together. Such a batch has slots of its own, in which each piece has a fixed place, whether or not
/// there is such a piece.
struct RingBatch {
  int parts;    ///< tiles of 8 rows of W
  int at_once;  ///< pieces of each: 1 << shift
  int shift;

  [[nodiscard]] JRT_DETAIL_HD constexpr int slots() const { return (parts * at_once + slot_pieces - 1) / slot_pieces; }
  [[nodiscard]] JRT_DETAIL_HD constexpr int part(int number) const { return number >> shift; }
  [[nodiscard]] JRT_DETAIL_HD constexpr int piece(int number) const { return number & (at_once - 1); }
  /// Whether a slot has any piece, where there are only so many parts and pieces.
  [[nodiscard]] JRT_DETAIL_HD constexpr bool has(int slot, int present_parts, int present_pieces) const {
    return part(slot * slot_pieces) < present_parts && piece(slot * slot_pieces) < present_pieces;
  }
};
[[nodiscard]] JRT_DETAIL_HD constexpr RingBatch ring_batch(int parts, int at_once) {
  return {parts, at_once, at_once == 4 ? 2 : at_once == 2 ? 1 : 0};
}

/// Gives each stage its tiles. Returns each block's `first_tile` of all stages, block after block. Tiles of the residual
/// stream are always the same block's. Of all others, where tiles cannot be divided evenly, the blocks have one more that
/// have read fewest weights so far: so all blocks read as much in a step, and the ring makes up for the moment.
inline std::vector<std::int32_t> divide_among_blocks(std::vector<Stage>& stages, int blocks) {
  std::vector<std::int32_t> first_tiles(static_cast<std::size_t>(blocks) * stages.size());
  std::vector<std::int64_t> read(static_cast<std::size_t>(blocks));
  std::vector<std::size_t> order(read.size());
  for (std::size_t s = 0; s < stages.size(); ++s) {
    Stage& stage = stages[s];
    const bool is_residual = stage.kind == StageKind::embed || stage.kind == StageKind::adds;
    if (!is_residual && !is_product(stage.kind)) {
      continue;
    }
    stage.tiles = stage.outputs / (stage.kind == StageKind::rotates ? 2 * tile_outputs : tile_outputs);
    std::iota(order.begin(), order.end(), std::size_t{0});
    if (!is_residual) {
      std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return read[a] < read[b]; });
    }
    for (int first = 0; first < blocks; ++first) {
      const std::size_t block = order[static_cast<std::size_t>(first)];
      first_tiles[block * stages.size() + s] = first;
      read[block] += std::int64_t{tile_parts(stage.kind) * stage.in} * ((stage.tiles - first + blocks - 1) / blocks);
    }
  }
  return first_tiles;
}

}  // namespace jrt_lm
