// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/instructions.cuh"
#include "jrt/detail/cuda/core/sm90/numbers.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/linear/sm90/layout.cuh"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The features of 16 keys as left operands for the rows of the state, formed in registers from the tile in shared memory:
/// warp w of four forms those of its own rows. plan/hopper_packing.hpp has their order.
///
/// A lane's share of φ(k) for 16 tokens comes from one ldmatrix and four shuffles: transposed keys are already fragments
/// for the matrix unit,
///
///     inputs[0] = L, tokens 0-7    inputs[1] = H, tokens 0-7    inputs[2] = L, tokens 8-15    inputs[3] = H, tokens 8-15
///
/// with lane 4u + c holding input u of the half for tokens 2c and 2c+1: a half is shifted by taking it from lane + 4·shift.
/// φ(k) is therefore never in shared memory, and the four warps need no barrier among themselves. With d = 8 there is no H,
/// and a half shifted by three or four takes its place.
template <class Config, class Layout>
class KeyFeatures {
 protected:
  using Packing = typename Layout::Packing;
  using Numbers = HopperNumbers<typename Config::Element>;

  __device__ explicit KeyFeatures(int warp)
      : warp_(warp),
        shifted_lane_((lane() + 4 * (warp_ == 0 && !one_half ? 4 : warp_)) % 32),
        key_row_(Layout::keys + (lane() / 16 * 8 + lane() % 8) * Layout::input_row +
                 ((lane() / 8 % 2 * 16) ^ (lane() / 4 % 2 * 16))) {}

  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }

  /// Loads the keys of 16 tokens; `take_inputs` makes them current.
  __device__ void load_next_inputs(int stage, int step) {
    load_blocks_transposed(next_inputs_,
                           SharedNumbers::at(key_row_ + stage * Layout::input_tile + step * 16 * Layout::input_row));
  }
  __device__ void take_inputs() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      inputs_[i] = Numbers::key_shift == 0 ? next_inputs_[i]
                                           : Numbers::product(next_inputs_[i], Numbers::power_of_two(-Numbers::key_shift));
      shifted_[i] = __shfl_sync(~0u, inputs_[i], shifted_lane_);
    }
    if constexpr (one_half) {
      const int lane_of_second = (lane() + 4 * (warp_ == 0 ? 4 : 3)) % 32;
      shifted_[1] = __shfl_sync(~0u, inputs_[0], lane_of_second);
      shifted_[3] = __shfl_sync(~0u, inputs_[2], lane_of_second);
    }
  }

  /// Features of this warp's rows of tile m.
  template <int m>
  __device__ void multiply_inputs(LeftFragment& features) const {
    Pair(&f)[4] = features.pairs;
    if constexpr (one_half) {
      const Pair rest = lane() / 4 == Packing::constant_row ? one_one : 0;
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const Pair second = Numbers::product(inputs_[i], shifted_[i + 1]);
        f[i] = warp_ < 3 ? Numbers::product(inputs_[i], shifted_[i]) : 0;
        f[i + 1] = warp_ == 0 ? (lane() / 4 < 4 ? second : rest) : (warp_ == 2 ? second : (warp_ == 1 ? inputs_[i] : 0));
      }
    } else if constexpr (m == 0) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        f[i] = Numbers::product(inputs_[i], warp_ == 0 ? inputs_[i] : shifted_[i]);
      }
    } else if constexpr (m == 1) {
      f[0] = Numbers::product(inputs_[0], shifted_[1]);
      f[2] = Numbers::product(inputs_[2], shifted_[3]);
      if (warp_ == 0) {
        const bool low = lane() / 4 < 4;
        f[1] = Numbers::product(low ? inputs_[0] : inputs_[1], low ? shifted_[0] : shifted_[1]);
        f[3] = Numbers::product(low ? inputs_[2] : inputs_[3], low ? shifted_[2] : shifted_[3]);
      } else {
        f[1] = Numbers::product(inputs_[1], shifted_[0]);
        f[3] = Numbers::product(inputs_[3], shifted_[2]);
      }
    } else if (warp_ == 0) {
      f[0] = Numbers::product(inputs_[0], inputs_[1]);
      f[2] = Numbers::product(inputs_[2], inputs_[3]);
      f[1] = f[3] = lane() / 4 == 0 ? one_one : 0;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        f[i] = warp_ == 1 ? inputs_[i] : 0;
      }
    }
  }

  int warp_;

 private:
  static constexpr bool one_half = Packing::input_dim == 8;
  static constexpr Pair one_one = Numbers::power_of_two(0);

  int shifted_lane_;
  SharedAddress key_row_;  // of stage 0, for ldmatrix
  Pair next_inputs_[4];
  Pair inputs_[4];
  Pair shifted_[4];
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
