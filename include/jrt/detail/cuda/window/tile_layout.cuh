// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/mixer/window_attention.hpp"
#include "jrt/policy/rotary.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Rows, threads and shared memory of a block of the prefill on the matrix unit:
///
///     shared memory: `stages` times keys [64][d + 8], values [64][dv + 8]; outputs [rows][dv + 8] in the same place
template <WindowConfig Config>
struct WindowTileLayout {
  using Element = typename Config::Element;
  static constexpr int head_dim = Config::head_dim;
  static constexpr int value_dim = Config::value_dim;
  static constexpr bool supported = sizeof(Element) == 2 && head_dim % 16 == 0 && value_dim % 16 == 0 && head_dim <= 128 &&
                                    value_dim <= 128 &&
                                    (!Config::Rotary::rotates || is_rotary_halves<typename Config::Rotary>);
  static constexpr WindowTilesTuning tuning = window_tiles_tuning;
  static constexpr bool narrow = larger(head_dim, value_dim) <= 64;
  static constexpr int warps = tuning.warps;
  static constexpr int threads = warps * 32;
  static constexpr int row_tiles = narrow ? tuning.narrow_row_tiles : tuning.wide_row_tiles;  // of a warp
  static constexpr int warp_rows = 16 * row_tiles;
  static constexpr int rows = warps * warp_rows;  // of a block
  static constexpr int tile_keys = tuning.tile_keys;
  static constexpr int step_keys = tuning.step_keys;
  static constexpr int stages = narrow ? tuning.narrow_stages : tuning.wide_stages;  // of keys and values in flight
  static constexpr int padding = 8;                                                  // a column of rows touches all banks
  static constexpr int key_stride = head_dim + padding;
  static constexpr int value_stride = value_dim + padding;
  static constexpr int stage_elements = tile_keys * (key_stride + value_stride);
  static constexpr int output_elements = rows * value_stride;
  static constexpr std::size_t shared_bytes = sizeof(Element) * larger(stages * stage_elements, output_elements);
  static constexpr int blocks_per_multiprocessor = narrow ? tuning.narrow_blocks : tuning.wide_blocks;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
