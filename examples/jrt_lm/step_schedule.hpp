// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <jrt/detail/host_device.hpp>
#include <vector>

/// A decode step of a whole model as a list of stages, which one kernel works through (step_kernel.cuh). All blocks do a
/// part of each stage and then wait for one another, so that a stage may read whatever stages before it have written; no
/// stage writes what others read in it. The list is made once, on the host, for a number of rows and of blocks.
namespace jrt_lm {

/// Rows of a product's result are made in tiles of 8; a product's weights travel to shared memory in pieces of 512 columns.
inline constexpr int step_rows = 16;
inline constexpr int tile_outputs = 8;
inline constexpr int chunk_columns = 32;  ///< of a warp
inline constexpr int piece_columns = 512;

enum class StageKind : std::int32_t {
  embed,      ///< y = table row of each token
  stores,     ///< y = W norm(x) + bias
  convolves,  ///< W has twice as many rows: y = convolution step of the first half times the second
  rotates,    ///< y = W norm(x) + bias, heads rotated by their positions where they are queries or keys
  gates,      ///< W has twice as many rows: y = first half times silu(second half)
  adds,       ///< y += W x + bias
  linear,     ///< y = linear attention's step of x
  window,     ///< y = window's step of x
  logits,     ///< y = W norm(x), and each block's likeliest tokens
  likeliest,  ///< the likeliest token of each row
};

/// One stage. Pointers are the device's; which type is behind them follows from `kind`.
struct alignas(16) Stage {
  StageKind kind = StageKind::embed;
  std::int32_t in = 0;           ///< columns of W
  std::int32_t outputs = 0;      ///< columns of y that are written
  std::int32_t tiles = 0;        ///< a product's: of 8 outputs, or of 8 and 8 that belong together
  std::int32_t first_block = 0;  ///< that has tile 0; the next block has the next
  std::int32_t half = 0;         ///< `rotates`: half a head
  std::int32_t x_columns = 0;    ///< from a row to the next
  std::int32_t y_columns = 0;
  const void* weight = nullptr;
  const void* bias = nullptr;
  const float* norm = nullptr;  ///< of x; null: x is not normalised
  const void* x = nullptr;
  void* y = nullptr;
  const void* filter = nullptr;  ///< of a convolution
  const void* filter_bias = nullptr;
  void* state = nullptr;  ///< of a mixer: slot 0
};

[[nodiscard]] JRT_DETAIL_HD constexpr bool is_product(StageKind kind) {
  return kind != StageKind::embed && kind != StageKind::linear && kind != StageKind::window && kind != StageKind::likeliest;
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
/// The first tile of a block; it has each `blocks`-th.
[[nodiscard]] JRT_DETAIL_HD constexpr int first_tile(const Stage& stage, int block, int blocks) {
  return block >= stage.first_block ? block - stage.first_block : block - stage.first_block + blocks;
}
[[nodiscard]] JRT_DETAIL_HD constexpr int pieces_of(int in) {
  return (in + piece_columns - 1) / piece_columns;
}

/// Gives each product its tiles, block after block without a gap between stages, so that all blocks read as much.
inline void divide_among_blocks(std::vector<Stage>& stages, int blocks) {
  int next = 0;
  for (Stage& stage : stages) {
    if (is_product(stage.kind)) {
      const int rows_of_tile = stage.kind == StageKind::rotates ? 2 * tile_outputs : tile_outputs;
      stage.tiles = stage.outputs / rows_of_tile;
      stage.first_block = next;
      next = (next + stage.tiles) % blocks;
    }
  }
}

}  // namespace jrt_lm
