// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/mma.cuh"
#include "jrt/numeric.hpp"

/// Products of the matrix unit for both 16-bit types, and the pairs of values that it takes.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// sums += left · right, a 16x16 and a 16x8 operand.
template <class Element>
__device__ void multiply_add_16bit(Accumulator& sums, const Pair (&left)[4], const RightFragment& right) {
  if constexpr (std::is_same_v<Element, Half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums.values[0]), "+f"(sums.values[1]), "+f"(sums.values[2]), "+f"(sums.values[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right.pairs[0]), "r"(right.pairs[1]));
  } else {
    multiply_add(sums, LeftFragment{{left[0], left[1], left[2], left[3]}}, right);
  }
}

/// Two floats, rounded, the first in the low half.
template <class Element>
__device__ Pair rounded_pair(float first, float second) {
  Pair pair;
  if constexpr (std::is_same_v<Element, Half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  }
  return pair;
}
template <class Element>
__device__ float number_of(Pair pair, int which) {
  Element number;
  number.bits = static_cast<std::uint16_t>(pair >> (16 * which));
  return convert<float>(number);
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
