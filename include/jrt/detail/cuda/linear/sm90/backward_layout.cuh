// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/cuda/linear/sm90/layout.cuh"
#include "jrt/detail/shared/linear/denominators.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/mixer/linear_attention.hpp"

/// Sizes of the backward kernels for sm_90a, and the layouts of their shared memory.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The two passes over a sequence. `queries` goes forward in time with the state S = Σ φ(k)·[v | 1] and makes the gradients
/// of q; `keys` goes backward in time with R = Σ f·φ(q)·[dy | c] and makes those of k and v.
enum class BackwardPass { queries, keys };

/// What all backward kernels share. Tiles are those of the prefill: 64 rows of inputs (q, k) of 32 bytes, of values (v, dy,
/// y) of 128 bytes, as the copy engine swizzles them.
template <class Config>
struct BackwardTiles {
  using Packing = HopperPacking;
  static constexpr int chunk = 64;    // tokens
  static constexpr int columns = 64;  // of v, in a slice; the copy engine fills what v does not have with zeros
  static constexpr int slices = ceil_div(Config::value_dim, columns);
  static constexpr int input_row = 32;
  static constexpr int value_row = 128;
  static constexpr int input_tile = chunk * input_row;
  static constexpr int value_tile = chunk * value_row;
  static constexpr int ones_tile = 16 * value_row;
  static constexpr bool ones_apart = true;

  static constexpr int state_warp_threads = 128;
  static constexpr int threads = 256;

  static constexpr bool normalised = has_denominators<Config>;
  static constexpr bool supported = HopperLayout<Config>::supported && Config::FeatureMap::input_dim == 16 &&
                                    std::is_same_v<typename Config::Element, BFloat16> && !Config::Mask::reads_future &&
                                    !Config::Padding::keeps_padded_keys && !consumes_evicted_keys<Config> &&
                                    !is_linear_part<Config>;
  /// Whether c comes from the outputs: where the operator's sums are but a part of them.
  static constexpr bool given_products = normalised && key_delay<Config> != 0;

  // Shared memory starts after the 1024 bytes that CUDA reserves, as in HopperLayout.
  static constexpr SharedAddress base = 1024;
  static constexpr SharedAddress barriers = base;
};

/// R in the workspace: the columns of one slice, then its r.
template <class Config>
struct GradientSliceFormat {
  static constexpr int rows = StateFormatOf<Config>::rows;
  static constexpr int columns = BackwardTiles<Config>::columns;
  static constexpr int normaliser_offset = rows * columns;
  static constexpr int head_values = normaliser_offset + rows;
};

/// The columns of a slice in a state of `Format` in memory, as far as it has them, from `first_column` on; null if there is
/// no state.
template <class Format, class Scalar>
struct StateSlice {
  static constexpr int columns = static_cast<int>(Format::columns);
  static constexpr int normaliser_offset = static_cast<int>(Format::normaliser_offset);
  Scalar* state = nullptr;
  int first_column = 0;
  bool with_normaliser = true;  // whether this slice counts z, or r

  /// Whether the state has this column of the slice; it has an even number of them.
  [[nodiscard]] __device__ bool has(int column) const { return columns % 64 == 0 || first_column + column < columns; }
  [[nodiscard]] __device__ Scalar* at(int row, int column) const { return state + row * columns + first_column + column; }
  [[nodiscard]] __device__ Scalar& normaliser(int row) const { return state[normaliser_offset + row]; }
};

/// The two bfloat16 of a pair as float, one instruction each.
__device__ inline float first_of(Pair pair) {
  return __uint_as_float(pair << 16);
}
__device__ inline float second_of(Pair pair) {
  return __uint_as_float(pair & 0xffff0000U);
}

/// What pass `queries` knows about 64 query tokens and pass `keys` needs again, in the workspace: their gradients are
/// dO = f·dy and dn = f·c, f the normaliser's factor and c = f'(n)/f(n)² (dy · y). 0 where there is no token.
struct TokenRecord {
  static constexpr int factor = 0;          // float f [64]
  static constexpr int scaled = 256;        // float f·c [64]
  static constexpr int factor_pairs = 512;  // f [64], rounded
  static constexpr int high = 640;          // c [64], rounded
  static constexpr int low = 784;           // c [64], what rounding lost; 16 bytes further on, in other banks
  static constexpr int bytes = 1024;
};

/// A state as the state warps publish it, rounded: 20 groups of 8 features, a group as 9 blocks of 8 features by 8 columns,
/// a row of a block 16 bytes. In pass `keys` columns 64-71 are r, as (rounded, what rounding lost) four times. The same
/// bytes are
///
///     the right operand of φ(x)·S, 16 features deep             (features_deep)
///     the right operand of dy·Sᵀ and [v | 1]·Rᵀ, 16 columns deep  (values_deep), 80 features in either half
///
/// Steps of two groups lie in the order in which InputGradient needs them, not in HopperPacking's:
///
///     place      0     1     2     3     4  |  5     6     7     8     9
///     shift      4     3     3     2     2  |  1     1     0     0     linear
///     step       4     3     7     2     6  |  1     5     0     8     9         of HopperPacking
struct PublishedState {
  static constexpr int group = 8 * 72 * 2;
  static constexpr int half = 10 * group;
  static constexpr int bytes = 2 * half;

  /// Of what state warp w has in tile m.
  static __device__ int place(int m, int w) { return m == 0 ? 7 - 2 * w : (m == 1 ? (w == 0 ? 0 : 8 - 2 * w) : 8 + w); }
  static __device__ MatrixDescriptor features_deep(SharedAddress state, int place) {
    return {state + place * 2 * group, group, 128, Swizzle::none};
  }
  static __device__ MatrixDescriptor values_deep(SharedAddress half_state, int step) {
    return {half_state + step * 256, 128, group, Swizzle::none};
  }
  /// The columns of r, twice.
  static __device__ MatrixDescriptor normaliser_deep(SharedAddress half_state) {
    return {half_state + 8 * 128, 0, group, Swizzle::none};
  }
};

/// z as pass `queries` publishes it, where q needs J(q)ᵀz = (Z q + 4 z_lin)/16: Z, the 16 x 16 second moments of the keys,
/// rounded, as four blocks of 8 x 8, and 4 z_lin in float.
struct PublishedMoments {
  static constexpr int linear = 512;
  static constexpr int bytes = 1024;

  static __device__ SharedAddress at(SharedAddress moments, int row, int column) {
    return moments + row / 8 * 256 + column / 8 * 128 + row % 8 * 16 + column % 8 * 2;
  }
  static __device__ MatrixDescriptor square(SharedAddress moments) { return {moments, 256, 128, Swizzle::none}; }
};

/// Shared memory and barriers of a pass. "Summed" tiles enter the state: k and v, or q and dy. "Row" tiles are those whose
/// inputs get gradients: q and dy, or k and v.
///
///     base      barriers                               queries           keys
///               means of v [4]                         1 KiB
///               summed values [stages]                 v    24 KiB       dy   24 KiB    swizzle 128 B
///               summed inputs [stages]                 k     6 KiB       q     6 KiB    swizzle 32 B
///               records [stages]                                               3 KiB
///               row values [stages]                    dy   24 KiB       v    24 KiB    swizzle 128 B
///               ones                                         2 KiB
///               row inputs [stages]                    q     6 KiB       k     6 KiB    swizzle 32 B
///               states [2]                                  45 KiB            45 KiB
///               moments [2]                                  2 KiB
template <class Config, BackwardPass pass>
struct BackwardLayout : BackwardTiles<Config> {
  using Tiles = BackwardTiles<Config>;
  using Tiles::base, Tiles::input_tile, Tiles::value_tile, Tiles::ones_tile, Tiles::chunk, Tiles::input_row,
      Tiles::value_row;
  static constexpr bool queries = pass == BackwardPass::queries;
  /// Whether the mean of v is taken out of the published state: S·dy + c·z = (S − z·mᵀ)·dy + (c + m·dy)·z for every m, and
  /// where values have a common mean, the left side cancels against what rounding S has lost.
  static constexpr bool centred = queries && Tiles::normalised;
  static constexpr int stages = hopper_backward_tuning.stages;
  static constexpr int width = queries ? 72 : 64;  // of the state; z has its own products in pass `keys`

  static constexpr SharedAddress means = base + 1024;  // [4][64]
  static constexpr SharedAddress values = base + 2048;
  static constexpr SharedAddress inputs = values + stages * value_tile;
  static constexpr SharedAddress records = inputs + stages * input_tile;
  static constexpr SharedAddress sum_end = records + (queries ? 0 : stages * TokenRecord::bytes);
  static constexpr SharedAddress row_values = sum_end;
  static constexpr SharedAddress ones = row_values + stages * value_tile;
  static constexpr SharedAddress row_inputs = ones + (queries ? ones_tile : 0);
  static constexpr SharedAddress states = row_inputs + stages * input_tile;     // [2]
  static constexpr SharedAddress moments = states + 2 * PublishedState::bytes;  // [2]
  static constexpr SharedAddress end = moments + (centred ? 2 * PublishedMoments::bytes : 0);
  static constexpr std::size_t sum_bytes = sum_end - base;
  static constexpr std::size_t shared_bytes = end - base;
  static_assert(values % 1024 == 0 && row_values % 1024 == 0, "the swizzle repeats every 1024 bytes");

  static constexpr SharedAddress full = Tiles::barriers;           // [stages]; the copy engine
  static constexpr SharedAddress summed_free = full + 8 * stages;  // [stages]; 4 state warps, chunks without gradients
  static constexpr SharedAddress state_full = summed_free + 8 * stages;  // [2]; 4 state warps
  static constexpr SharedAddress state_free = state_full + 16;           // [2]; 4 gradient warps
  static constexpr SharedAddress stored = state_free + 16;               // 4 gradient warps: dv is read from where v was
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
