// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/instructions.cuh"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/policy/taylor.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Sizes of WarpgroupEngine, and its shared memory. "Group" is a group of four warps, "step" 16 features or tokens, the
/// depth of one product.
///
///     state S, in registers, 64 rows by width a tile      shared memory, in this order
///          tile 0   group 0                               what outlives registers, see WarpgroupChunk
///          tile 1   group 1                               z         [steps][4][4] float, the features of lanes 4g + c
///          tile 2   group 2                               keys      [chunk][input_stride] float
///          tile 3   group 0 …                             queries   [chunk][input_stride] float
///                                                         values    [chunk / 8][width / 8] blocks of 8 x 8
///                                                         states    [rows / 8][width / 8] blocks of 8 x 8
///                                                         aside     [width / 8][threads][4] float, if a group's tiles
///                                                         leave no room for outputs
///
/// A row of keys or queries is followed by its own first half, so that x_((i + s) mod d) is at i + s; that of a key then by
/// factors by which products become its other features. Rows are scaled so that products need no further factor.
template <class Config>
struct WarpgroupLayout {
  using Map = typename Config::FeatureMap;
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  static constexpr WarpgroupPrefillTuning tuning = warpgroup_prefill_tuning<Map::input_dim>;
  static constexpr int groups = tuning.groups;
  static constexpr int threads = 128 * groups;
  static constexpr int chunk = 64 * groups;  // tokens: each group has the outputs of 64
  static constexpr int slices = ceil_div(Config::value_dim, tuning.max_columns);
  static constexpr int columns = round_up(ceil_div(Config::value_dim, slices), 8);  // of v, in a slice
  static constexpr int width = larger(columns, 16);                                 // of a product

  static constexpr int input_dim = Map::input_dim;
  static constexpr int input_steps = ceil_div(input_dim, 16);
  static constexpr int input_stride = input_dim / 2 * 3 + 4;
  static constexpr int feature_steps = ceil_div(Map::feature_dim, 16);
  static constexpr int tiles = ceil_div(feature_steps, 4);
  static constexpr int group_tiles = ceil_div(tiles, groups);

  /// Of inputs on their way to shared memory: products of keys are then features, as are those of two different queries.
  static constexpr double product_scale = [] {
    if constexpr (is_taylor2<Map>) {
      return Map::product_scale;
    } else {
      return 1.0;
    }
  }();
  static constexpr auto key_scale = static_cast<float>(square_root(product_scale));
  static constexpr auto query_scale = static_cast<float>(square_root(2 * product_scale));
  static constexpr int linear_factor = input_dim / 2 * 3;  // where it is in a key's row
  static constexpr int one = linear_factor + 1;
  static constexpr int zero = linear_factor + 2;

  static constexpr int row_bytes = input_stride * static_cast<int>(sizeof(float));
  static constexpr int row_block = 8 * width * 2;  // 8 tokens of values, or 8 rows of the state
  // Shared memory starts after the 1024 bytes that CUDA reserves (checked by the host). As constants these addresses cost
  // no registers.
  static constexpr SharedAddress base = 1024;
  static constexpr int kept_bytes = 128;
  static constexpr SharedAddress normaliser = base + kept_bytes;
  static constexpr SharedAddress keys = normaliser + feature_steps * 64;
  static constexpr SharedAddress queries = keys + chunk * row_bytes;
  static constexpr SharedAddress values = queries + chunk * row_bytes;
  static constexpr SharedAddress states = values + chunk / 8 * row_block;
  static constexpr SharedAddress aside = states + feature_steps * 2 * row_block;
  /// With three wide tiles in 168 registers there is no room for outputs: meanwhile the last one is set aside.
  static constexpr bool sets_aside = groups > 2 && group_tiles* width > 128;
  static constexpr std::size_t shared_bytes = aside + (sets_aside ? width / 8 * threads * 16 : 0) - base;

  /// Rows whose length is 4 modulo 8 lie so that neither eight rows by four neighbours nor four pairs of rows by eight
  /// neighbours share a bank.
  static constexpr bool no_conflicts = input_stride % 8 == 4;

  /// bfloat16 at d = 32 and 64; at d = 16 it has kernels of its own, and float has SplitEngine.
  static constexpr bool supported = std::is_same_v<Map, Taylor2<input_dim, SymmetricPacking>> &&
                                    std::is_same_v<ConfigCompute<Config>, float> && std::is_same_v<Element, BFloat16> &&
                                    (input_dim == 32 || input_dim == 64) && no_conflicts &&
                                    shared_bytes <= shared_bytes_sm90;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
