// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "jrt/detail/abi.hpp"

/// One warp's matrix unit: 16x8 products of bfloat16, and the loads that fill its fragments (PTX ISA, "mma.sync.m16n8k16"
/// and "ldmatrix"). Lane l = 4·g + c holds, of a
///
///     16x8 accumulator: {(g, 2c), (g, 2c+1), (g+8, 2c), (g+8, 2c+1)};
///     16x16 left operand: pairs {(g, 2c), (g+8, 2c), (g, 2c+8), (g+8, 2c+8)};
///     16x8 right operand: pairs {(2c, g), (2c+8, g)}, along its first index.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Two neighbouring bfloat16, the first in the low half.
using Pair = std::uint32_t;

/// Address of bfloat16 values in shared memory. As 32 bits rather than a pointer, so that constant offsets become part of
/// the instruction; the compiler would keep an address in a register for every one of them.
struct SharedNumbers {
  std::uint32_t bytes = 0;

  SharedNumbers() = default;
  __device__ explicit SharedNumbers(const void* pointer)
      : bytes(static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer))) {}
  static __device__ SharedNumbers at(std::uint32_t address) {
    SharedNumbers numbers;
    numbers.bytes = address;
    return numbers;
  }

  __device__ friend SharedNumbers operator+(SharedNumbers address, int numbers) {
    address.bytes += static_cast<std::uint32_t>(numbers) * sizeof(__nv_bfloat16);
    return address;
  }
  [[nodiscard]] __device__ void* pointer() const { return __cvta_shared_to_generic(bytes); }
};

__device__ inline void store_pair(SharedNumbers to, Pair pair) {
  asm volatile("st.shared.b32 [%0], %1;" : : "r"(to.bytes), "r"(pair) : "memory");
}
__device__ inline void store_pairs(SharedNumbers to, const Pair (&pairs)[4]) {
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};"
               :
               : "r"(to.bytes), "r"(pairs[0]), "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
               : "memory");
}
__device__ inline void load_pairs(Pair (&pairs)[4], SharedNumbers from) {
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
               : "r"(from.bytes)
               : "memory");
}

struct LeftFragment {
  Pair pairs[4];
};
struct RightFragment {
  Pair pairs[2];
};
struct Accumulator {
  float values[4];
};

__device__ inline void multiply_add(Accumulator& sums, const LeftFragment& left, const RightFragment& right) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums.values[0]), "+f"(sums.values[1]), "+f"(sums.values[2]), "+f"(sums.values[3])
      : "r"(left.pairs[0]), "r"(left.pairs[1]), "r"(left.pairs[2]), "r"(left.pairs[3]), "r"(right.pairs[0]),
        "r"(right.pairs[1]));
}

/// Loads four 8x8 blocks of 16-bit values; lane l has the address of row l % 8 of block l / 8.
__device__ inline void load_blocks(Pair (&blocks)[4], SharedNumbers row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(blocks[0]), "=r"(blocks[1]), "=r"(blocks[2]), "=r"(blocks[3])
               : "r"(row.bytes)
               : "memory");
}

/// The same, with each block transposed.
__device__ inline void load_blocks_transposed(Pair (&blocks)[4], SharedNumbers row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(blocks[0]), "=r"(blocks[1]), "=r"(blocks[2]), "=r"(blocks[3])
               : "r"(row.bytes)
               : "memory");
}

/// A 16x16 left operand whose element (m, k) is at `tile + m * stride + k`.
__device__ inline LeftFragment load_left(SharedNumbers tile, int stride, int lane) {
  LeftFragment left;
  load_blocks(left.pairs, tile + (lane % 16) * stride + lane / 16 * 8);
  return left;
}

/// A 16x16 left operand whose element (m, k) is at `tile + k * stride + m`.
__device__ inline LeftFragment load_left_transposed(SharedNumbers tile, int stride, int lane) {
  LeftFragment left;
  load_blocks_transposed(left.pairs, tile + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
  return left;
}

/// Two neighbouring 16x8 right operands whose element (k, n) is at `tile + k * stride + n`, n = 0 … 15.
__device__ inline void load_right(RightFragment (&right)[2], SharedNumbers tile, int stride, int lane) {
  Pair blocks[4];
  load_blocks_transposed(blocks, tile + (lane % 16) * stride + lane / 16 * 8);
  right[0] = {{blocks[0], blocks[1]}};
  right[1] = {{blocks[2], blocks[3]}};
}

/// Two neighbouring 16x8 right operands whose element (k, n) is at `tile + n * stride + k`, n = 0 … 15.
__device__ inline void load_right_transposed(RightFragment (&right)[2], SharedNumbers tile, int stride, int lane) {
  Pair blocks[4];
  load_blocks(blocks, tile + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
  right[0] = {{blocks[0], blocks[1]}};
  right[1] = {{blocks[2], blocks[3]}};
}

__device__ inline Pair as_pair(__nv_bfloat162 value) {
  return *reinterpret_cast<const Pair*>(&value);
}
__device__ inline float2 as_floats(Pair pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000U)};  // one instruction each
}

/// A float as a sum of `terms` bfloat16, each with 8 of its bits. bfloat16 elements need one term; two terms hold 16 bits,
/// more than half's 11, with float's range, so products of halves lose nothing (the product of the two second terms is
/// omitted: 2^-16 of the whole).
template <int terms>
struct Terms {
  Pair pairs[terms];  // [0] the leading ones

  static __device__ Terms of(float first, float second) {
    Terms result;
    for (int i = 0; i < terms; ++i) {
      result.pairs[i] = as_pair(__floats2bfloat162_rn(first, second));
      const float2 rounded = as_floats(result.pairs[i]);
      first -= rounded.x;
      second -= rounded.y;
    }
    return result;
  }

  /// The value that the terms represent.
  [[nodiscard]] __device__ float2 sum() const {
    float2 total = as_floats(pairs[terms - 1]);
    for (int i = terms - 2; i >= 0; --i) {
      const float2 leading = as_floats(pairs[i]);
      total.x += leading.x;
      total.y += leading.y;
    }
    return total;
  }
};

/// sums += left · right for operands given as terms.
template <int terms>
__device__ void multiply_terms(Accumulator& sums, const LeftFragment (&left)[terms], const RightFragment (&right)[terms]) {
#pragma unroll
  for (int i = terms - 1; i >= 0; --i) {
#pragma unroll
    for (int j = terms - 1 - i; j >= 0; --j) {
      multiply_add(sums, left[i], right[j]);
    }
  }
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
