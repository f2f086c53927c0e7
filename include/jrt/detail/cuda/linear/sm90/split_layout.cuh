// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/instructions.cuh"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/policy/taylor.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Sizes of SplitEngine, and its shared memory. "Group" is a group of four warps, "step" 16 features or tokens, the depth
/// of one product, "word" 8 bytes: an input of two tokens as two terms (SplitPair), or two inputs of a token.
///
///     state [S | z], in registers, 64 rows by width a tile    shared memory, in this order
///          tile 0, steps 0 … 3      group 0                       what outlives registers, see WarpgroupTokens
///          tile 1, steps 4 … 7      group 1                       keys     [chunk / 2][20] words of two tokens
///          tile 2, steps 8 and 9    group 2                       scores   [terms][chunk / 8][2] blocks of 8 x 8 of keys
///                                                                 queries  [chunk][16] words of inputs 8 apart, + 4
///                                                                 values   [terms][chunk / 8][width / 8] blocks of 8 x 8
///                                                                 states   [terms][rows / 8][width / 8] blocks of 8 x 8
///                                                                 sums     [width / 8][128][4] float: the first group's
///                                                                          for the last
///                                                                 staged   [chunk][columns + 4] float: the next values
///
/// Row 16·step + i of the state is, for steps 0 … 7, x_i · x_((i + step) mod 16); for step 8, x_i · x_(i + 8) and, in row
/// 8, the constant; for step 9, x_i. The last 8 columns are ones of values, so that z is summed with S.
template <class Config>
struct SplitLayout {
  using Map = typename Config::FeatureMap;
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  static constexpr WarpgroupPrefillTuning tuning = warpgroup_prefill_tuning<16>;
  static constexpr int groups = tuning.groups;
  static_assert(groups == 3, "a tile of the state for each");
  static constexpr int threads = 128 * groups;
  static constexpr int chunk = 64 * groups;  // tokens: each group has the outputs of 64
  static constexpr int terms = 2;
  static constexpr int slices = ceil_div(Config::value_dim, tuning.max_columns);
  static constexpr int columns = round_up(ceil_div(Config::value_dim, slices), 8);  // of v, in a slice
  static constexpr int width = columns + 8;                                         // of a product

  static constexpr int input_dim = 16;
  static constexpr int steps = 10;  // of features
  static constexpr int half_step = 8;
  static constexpr int linear_step = 9;

  /// Of inputs on their way to shared memory: then products of keys are features, as are those of two different queries,
  /// and products of queries and keys are scores.
  static constexpr auto key_scale = static_cast<float>(square_root(Taylor2<input_dim>::product_scale));
  static constexpr auto query_scale = static_cast<float>(square_root(2 * Taylor2<input_dim>::product_scale));

  // Words behind the inputs of a pair of keys, by which products become its other features.
  static constexpr int linear_factor = 16;
  static constexpr int one = 17;
  static constexpr int zero = 18;

  // Rows of words lie so that four of them by four neighbouring words share no bank.
  static constexpr int key_row = 20 * 8;
  static constexpr int query_row = 20 * 8;
  static constexpr int score_row = input_dim * 2;
  static constexpr int score_term = chunk * score_row;
  static constexpr int row_block = 8 * width * 2;  // 8 tokens of values, or 8 rows of the state
  static constexpr int value_term = chunk / 8 * row_block;
  static constexpr int state_block = row_block + 16;  // so that two blocks share no bank
  static constexpr int state_term = steps * 2 * state_block;

  // Shared memory starts after the 1024 bytes that CUDA reserves (checked by the host). As constants these addresses cost
  // no registers.
  static constexpr SharedAddress base = 1024;
  static constexpr int kept_bytes = 128;
  static constexpr SharedAddress keys = base + kept_bytes;
  static constexpr SharedAddress score_keys = keys + chunk / 2 * key_row;
  static constexpr SharedAddress queries = score_keys + terms * score_term;
  static constexpr SharedAddress values = queries + chunk * query_row;
  static constexpr SharedAddress states = values + terms * value_term;
  static constexpr SharedAddress taken_over = states + terms * state_term;
  static constexpr SharedAddress staged_values = taken_over + 128 * (width / 2) * 4;
  static constexpr int staged_row = columns * 4 + 16;  // so that eight rows share no bank
  static constexpr std::size_t shared_bytes = staged_values + chunk * staged_row - base;

  /// float as two terms, d = 16.
  static constexpr bool supported = std::is_same_v<Map, Taylor2<input_dim, SymmetricPacking>> &&
                                    std::is_same_v<Element, float> && std::is_same_v<ConfigCompute<Config>, float> &&
                                    ProductsOf<Config>::type::splits_numbers && shared_bytes <= shared_bytes_sm90;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
