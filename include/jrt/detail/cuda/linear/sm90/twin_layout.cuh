// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/instructions.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/cuda/linear/sm90/layout.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/hopper_packing.hpp"
#include "jrt/detail/plan/prefill_plan.hpp"
#include "jrt/mixer/linear_attention.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Sizes of the kernel for wide values, and the layout of its shared memory, where HopperLayout has slices: a block handles
/// all columns of v of one head of one segment of a sequence, alone on its multiprocessor. It has two groups of state warps
/// and two groups of output warps:
///
///     state warps 0     tile 0 of the state, all columns, and tile 2, the first columns
///     state warps 1     tile 1 of the state, all columns, and tile 2, the other columns
///     output warps g    all outputs of every second chunk
///
/// so weights and queries' features are formed once, and of keys' features only those of tile 2 twice.
template <class Config>
struct TwinLayout : HopperBarriers<twin_tuning.stages> {
  using Map = typename Config::FeatureMap;
  using Packing = HopperPacking;

  static constexpr int chunk = 64;  // tokens
  static constexpr int slices = 1;
  static constexpr int columns = Config::value_dim;
  static constexpr int width = columns + 8;  // of the state
  static constexpr int stages = twin_tuning.stages;

  static constexpr int groups = 2;  // of state warps, and of output warps
  static constexpr int state_warp_threads = groups * 128;
  static constexpr int output_threads = 2 * state_warp_threads;
  static constexpr int state_registers = twin_tuning.state_registers;
  static constexpr int output_registers = twin_tuning.output_registers;
  static constexpr int output_blocks = 1;
  static constexpr int sum_blocks = twin_tuning.sum_blocks;
  static constexpr int output_ring = twin_tuning.long_ring;
  static constexpr int sum_ring = columns < twin_tuning.short_ring_columns ? twin_tuning.long_ring : twin_tuning.short_ring;

  // Values are in two blocks of columns, one behind the other, so that the matrix unit reads more columns than a swizzle
  // has. Ones follow the last columns.
  static constexpr int block_columns = 64;
  static constexpr int last_columns = columns - block_columns;
  static constexpr bool ones_apart = false;

  static constexpr int input_columns = 16;
  static constexpr int input_row = 2 * input_columns;
  static constexpr int value_row = 2 * block_columns;
  static constexpr int input_tile = chunk * input_row;
  static constexpr int value_block = chunk * value_row;
  static constexpr int value_tile = 2 * value_block;
  static constexpr int input_bytes = chunk * input_row;  // transferred by a copy
  static constexpr int value_bytes = chunk * columns * 2;
  static constexpr int output_row = 128;
  static constexpr int output_tiles = ceil_div(columns, 64);
  static constexpr int output_tile = 16 * output_row;
  static constexpr int warp_output = output_tiles * output_tile;  // 16 tokens
  static constexpr int state_row_block = 8 * width * 2;           // 8 rows of the state
  static constexpr int state_tile = Packing::rows / 8 * state_row_block;

  static constexpr bool in_range = clamped(columns, block_columns + 8, twin_tuning.max_columns) == columns;
  static constexpr bool supported = in_range && columns % 8 == 0 && std::is_same_v<typename Config::Element, BFloat16> &&
                                    std::is_same_v<Map, Taylor2<Packing::input_dim, SymmetricPacking>> &&
                                    std::is_same_v<ConfigCompute<Config>, float> && has_queries<Config>;

  using HopperBarriers<twin_tuning.stages>::base;
  static constexpr SharedAddress values = base + 1024;                 // [stages]
  static constexpr SharedAddress keys = values + stages * value_tile;  // [stages]
  static constexpr SharedAddress sum_end = keys + stages * input_tile;
  static constexpr SharedAddress queries = sum_end;                            // [stages]
  static constexpr SharedAddress outputs = queries + stages * input_tile;      // [8 warps]
  static constexpr SharedAddress states = outputs + 4 * groups * warp_output;  // [2]
  static constexpr SharedAddress output_end = states + 2 * state_tile;
  static constexpr std::size_t sum_bytes = sum_end - base;
  static constexpr std::size_t output_bytes = output_end - base;
  static_assert(!in_range || output_bytes <= shared_bytes_sm90);
  static_assert(outputs % 1024 == 0 && value_block % 1024 == 0, "the swizzle repeats every 1024 bytes");

  /// Where the 16 bytes of columns 8j … 8j + 7 of row t are, as the copy engine swizzles them.
  static __device__ SharedAddress value_piece(int stage, int t, int j) {
    constexpr int pieces = block_columns / 8;
    return values + stage * value_tile + j / pieces * value_block + t * value_row + ((j % pieces) ^ (t % 8)) * 16;
  }

  /// The values of 16 tokens of a stage and the ones after them, from the first column of a block on.
  static __device__ MatrixDescriptor right_operand(int stage, int step, int column) {
    return {values + stage * value_tile + column / block_columns * value_block + step * 16 * value_row, value_block,
            8 * value_row, Swizzle::bytes_128};
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
