// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/mma.cuh"
#include "jrt/detail/host_device.hpp"
#include "jrt/numeric.hpp"

/// Arithmetic of an element type in the kernels for sm_90a: how pairs of it are formed and multiplied, and which factors
/// keep it in range.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

template <class Element>
struct HopperNumbers;

/// bfloat16 has the range of float and needs no factors.
template <>
struct HopperNumbers<BFloat16> {
  static constexpr CUtensorMapDataType tensor_map_type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  static constexpr bool narrow_range = false;
  static constexpr int key_shift = 0;
  static constexpr int output_shift = 0;
  static constexpr Pair root_of_two_fraction = 0x00350035;  // of √2, rounded, twice

  /// 2^exponent, twice.
  JRT_DETAIL_HD static constexpr Pair power_of_two(int exponent) {
    return static_cast<Pair>((127 + exponent) << 7) * 0x10001U;
  }

  static __device__ Pair rounded(float first, float second) {
    Pair pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
  }
  static __device__ Pair product(Pair a, Pair b) {
    Pair pair;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
    return pair;
  }
};

/// half ends at 65504 and loses bits below 6e-5. Products of inputs, weights of pairs, and above all sums over long
/// sequences leave that range. Therefore
///
///     keys are scaled by 2^-key_shift, their products by its square, and the factors of queries undo it;
///     queries' features and weights are scaled by 2^-output_shift, which the normaliser undoes;
///     rows of the state that are still too large are published with a factor (StateWarps::publish, StateFactors).
///
/// All are powers of two. Inputs up to 700 and weights up to 5e5 are safe; sums have no limit.
template <>
struct HopperNumbers<Half> {
  static constexpr CUtensorMapDataType tensor_map_type = CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  static constexpr bool narrow_range = true;
  static constexpr int key_shift = 2;
  static constexpr int output_shift = 3;
  static constexpr Pair root_of_two_fraction = 0x01a801a8;

  JRT_DETAIL_HD static constexpr Pair power_of_two(int exponent) {
    // From 2^-15 to 2^-24 half is subnormal; smaller powers are 0.
    const int bits = exponent >= -14 ? (15 + exponent) << 10 : (exponent >= -24 ? 1 << (24 + exponent) : 0);
    return static_cast<Pair>(bits) * 0x10001U;
  }

  static __device__ Pair rounded(float first, float second) {
    Pair pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
  }
  static __device__ Pair product(Pair a, Pair b) {
    Pair pair;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
    return pair;
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
