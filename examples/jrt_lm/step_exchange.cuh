// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <jrt/numeric.hpp>

/// How the blocks of a step wait for one another: not at all, but for numbers. What a stage writes has memory of its own,
/// in which all bits are set until then; a reader asks until it sees something else. No number is stored with all bits set:
/// the one NaN that would be is stored as another. There are two such memories, for steps in turn: a step sets all bits of
/// the other one, which nobody reads meanwhile.
///
///     writer    | product · store |                               one way to the L2 cache, and
///     readers   | ask · ask · ask · there | product · store |     one way from there: no barrier, no fence
namespace jrt_lm {

__device__ inline uint4 load_exchanged(const void* from) {
  uint4 words;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(from));
  return words;
}
/// If `asks`; else `otherwise` in all words.
__device__ inline uint4 load_exchanged_if(bool asks, const void* from, unsigned otherwise) {
  uint4 words;
  asm volatile(
      "{\n"
      ".reg .pred asks;\n"
      "setp.ne.u32 asks, %5, 0;\n"
      "mov.u32 %0, %6;\n"
      "mov.u32 %1, %6;\n"
      "mov.u32 %2, %6;\n"
      "mov.u32 %3, %6;\n"
      "@asks ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];\n"
      "}\n"
      : "=&r"(words.x), "=&r"(words.y), "=&r"(words.z), "=&r"(words.w)
      : "l"(from), "r"(static_cast<unsigned>(asks)), "r"(otherwise));
  return words;
}
/// Asks again if `asks`.
__device__ inline void reload_exchanged_if(bool asks, const void* from, uint4& words) {
  asm volatile(
      "{\n"
      ".reg .pred asks;\n"
      "setp.ne.u32 asks, %5, 0;\n"
      "@asks ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];\n"
      "}\n"
      : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w)
      : "l"(from), "r"(static_cast<unsigned>(asks)));
}
__device__ inline std::uint64_t load_exchanged_pair(const void* from) {
  std::uint64_t words;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(words) : "l"(from));
  return words;
}

/// Before other loads of what has been seen.
__device__ inline void acquire_exchanged() {
  asm volatile("fence.acq_rel.gpu;" : : : "memory");
}

/// Whether one of 8 numbers of 16 bits, or of 4 floats, is not there.
__device__ inline bool is_absent16(const uint4& words) {
  const unsigned most = __vmaxu2(__vmaxu2(words.x, words.y), __vmaxu2(words.z, words.w));
  return most >= 0xFFFF0000U || (most & 0xFFFFU) == 0xFFFFU;
}
__device__ inline bool is_absent32(const uint4& words) {
  const unsigned a = words.x > words.y ? words.x : words.y;
  const unsigned b = words.z > words.w ? words.z : words.w;
  return (a > b ? a : b) == ~0U;
}

/// 8 numbers of 16 bits, as soon as they are there.
__device__ inline uint4 await_exchanged(const void* from) {
  uint4 words = load_exchanged(from);
  while (is_absent16(words)) {
    words = load_exchanged(from);
  }
  return words;
}

__device__ inline void store_exchanged(jrt::BFloat16* to, jrt::BFloat16 number) {
  const auto bits = static_cast<std::uint16_t>(number.bits == 0xFFFFU ? 0x7FFFU : number.bits);
  asm volatile("st.relaxed.gpu.global.u16 [%0], %1;" : : "l"(to), "h"(bits) : "memory");
}
__device__ inline void store_exchanged(float* to, float number) {
  const unsigned bits = __float_as_uint(number);
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" : : "l"(to), "r"(bits == ~0U ? 0x7FFFFFFFU : bits) : "memory");
}
/// Two neighbours.
__device__ inline void store_exchanged_two(jrt::BFloat16* to, jrt::BFloat16 first, jrt::BFloat16 second) {
  const unsigned low = first.bits == 0xFFFFU ? 0x7FFFU : first.bits;
  const unsigned high = second.bits == 0xFFFFU ? 0x7FFFU : second.bits;
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" : : "l"(to), "r"(low | high << 16) : "memory");
}
/// 8 numbers, none of which has all bits set.
__device__ inline void store_exchanged_words(void* to, const uint4& words) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1,%2,%3,%4};"
               :
               : "l"(to), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
}
/// Of which the lower half never has all bits set.
__device__ inline void store_exchanged_pair(void* to, std::uint64_t words) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" : : "l"(to), "l"(words) : "memory");
}

}  // namespace jrt_lm
