// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/instructions.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/hopper_packing.hpp"
#include "jrt/mixer/linear_attention.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Where the barriers of a block are, and what else it keeps beside them.
///
/// Shared memory starts after the 1024 bytes that CUDA reserves (checked by the kernels). As constants these addresses cost
/// no registers.
template <int stages>
struct HopperBarriers {
  static constexpr SharedAddress base = 1024;
  static constexpr SharedAddress barriers = base;

  // Barriers. A stage is full when its copy has arrived, and free when its last reader is done.
  static constexpr SharedAddress keys_full = barriers;                  // [stages]
  static constexpr SharedAddress keys_free = keys_full + 8 * stages;    // [stages]; while only sums are formed
  static constexpr SharedAddress query_full = keys_free + 8 * stages;   // [stages]
  static constexpr SharedAddress query_free = query_full + 8 * stages;  // [stages]
  static constexpr SharedAddress state_full = query_free + 8 * stages;  // [2]
  static constexpr SharedAddress state_free = state_full + 16;          // [2]
  // log2 of the factor by which each state warp scaled its rows down when publishing them.
  static constexpr SharedAddress state_excess = state_free + 16;  // [2][4]
  // Address of the final state, kept here because the warps that write it have no registers to spare until then.
  static constexpr SharedAddress final_state = state_excess + 32;
  static constexpr SharedAddress ordered_sequence = final_state + 8;  // which one a block has
};

/// Sizes of the kernels for sm_90a, and the layout of their shared memory.
///
/// A block handles one head of one segment of a sequence, and where v is wider than 64, one of `slices` slices of its
/// columns. The state has 8 columns more than v: their values are ones, so they are z.
template <class Config>
struct HopperLayout : HopperBarriers<hopper_tuning<typename Config::Element>.stages> {
  using Map = typename Config::FeatureMap;
  using Packing = std::conditional_t<Map::input_dim == HopperPacking8::input_dim, HopperPacking8, HopperPacking>;

  static constexpr int chunk = 64;  // tokens
  static constexpr int max_columns = 64;
  static constexpr int slices = ceil_div(Config::value_dim, max_columns);
  static constexpr int columns = round_up(ceil_div(Config::value_dim, slices), 8);  // of v, in a slice
  static constexpr int width = columns + 8;                                         // of the state
  static constexpr int stages = hopper_tuning<typename Config::Element>.stages;

  /// Element types that the matrix unit multiplies directly, the packing's feature map, rows of whole 16 bytes.
  static constexpr bool supported = sizeof(typename Config::Element) == 2 &&
                                    std::is_same_v<Map, Taylor2<Packing::input_dim, SymmetricPacking>> &&
                                    std::is_same_v<ConfigCompute<Config>, float> && Config::value_dim % 8 == 0;

  static constexpr int state_warp_threads = 128;
  static constexpr int output_threads = 256;
  static constexpr int groups = 1;  // of state warps, and of output warps
  static constexpr int state_registers = hopper_tuning<typename Config::Element>.state_registers;
  static constexpr int output_registers = hopper_tuning<typename Config::Element>.output_registers;
  static constexpr int output_blocks = hopper_tuning<typename Config::Element>.output_blocks;
  static constexpr int output_ring = 2;  // left operands of the state warps in use at a time
  static constexpr int sum_ring = 2;
  static constexpr int sum_blocks = hopper_tuning<typename Config::Element>.sum_blocks;

  // Tiles as the copy engine writes them: 64 rows of keys or queries of 32 bytes (with d = 8 the second half is zeros), of
  // values of 128 bytes (whatever `columns` is: where it is less than 64, the copies leave the rest of a row unchanged, and
  // it holds ones).
  static constexpr int input_columns = 16;
  static constexpr int input_row = 2 * input_columns;
  static constexpr int value_row = 128;
  static constexpr int input_tile = chunk * input_row;
  static constexpr int value_tile = chunk * value_row;
  static constexpr int input_bytes = chunk * input_row;  // transferred by a copy
  static constexpr int value_bytes = chunk * columns * 2;
  static constexpr int output_row = 128;
  static constexpr int output_tiles = 1;  // of 64 columns
  static constexpr int output_tile = 16 * output_row;
  static constexpr int warp_output = output_tile;  // 16 tokens
  static constexpr int ones_tile = 16 * value_row;
  static constexpr int state_row_block = 8 * width * 2;  // 8 rows of the state
  static constexpr int state_tile = Packing::rows / 8 * state_row_block;

  /// Ones follow the values of every stage, or are in a tile of their own that the matrix unit reads as the next 64 columns
  /// of v.
  static constexpr bool ones_apart = columns == 64;

  using HopperBarriers<hopper_tuning<typename Config::Element>.stages>::base;
  static constexpr SharedAddress values = base + 1024;  // [stages]
  static constexpr SharedAddress ones = values + stages * value_tile;
  static constexpr SharedAddress keys = ones + ones_tile;  // [stages]
  static constexpr SharedAddress sum_end = keys + stages * input_tile;
  static constexpr SharedAddress queries = sum_end;                        // [stages]
  static constexpr SharedAddress outputs = queries + stages * input_tile;  // [4 warps]
  static constexpr SharedAddress states = outputs + 4 * warp_output;       // [2]
  static constexpr SharedAddress output_end = states + 2 * state_tile;
  static constexpr std::size_t sum_bytes = sum_end - base;
  static constexpr std::size_t output_bytes = output_end - base;
  static_assert(outputs % 1024 == 0, "the swizzle repeats every 1024 bytes");

  /// Where the 16 bytes of columns 8j … 8j + 7 of row t are, as the copy engine swizzles them.
  static __device__ SharedAddress value_piece(int stage, int t, int j) {
    return values + stage * value_tile + t * value_row + (j ^ (t % 8)) * 16;
  }

  /// The values of 16 tokens of a stage and the ones after them.
  static __device__ MatrixDescriptor right_operand(int stage, int step, int /*column*/) {
    return values_and_ones<HopperLayout>(stage, step);
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
