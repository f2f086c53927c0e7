// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/instructions.cuh"
#include "jrt/numeric.hpp"

/// The matrix unit of sm_90a for four warps together (PTX ISA, "wgmma"): products of 64 rows by 16 by N columns. Lane
/// l = 4·g + c of warp w holds, of a
///
///     64xN accumulator: sums[4j + 2h + e] = (16w + 8h + g, 8j + 2c + e);
///     64x16 left operand: the fragments that `mma.sync` has for rows 16w … 16w + 15.
///
/// The right operand is in shared memory, found through a descriptor.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// How a tile in shared memory is swizzled: which bits of the address select the 16 bytes of a row.
enum class Swizzle : std::uint32_t { none = 0, bytes_128 = 1, bytes_32 = 3 };

/// Descriptor of a tile that the matrix unit reads: 64 bits as two words, so that a constant offset is one 32-bit addition.
struct MatrixDescriptor {
  std::uint32_t low = 0;
  std::uint32_t high = 0;

  /// `leading` and `stride` are the distances in bytes between blocks of 8 rows of 16 bytes (or of a swizzle's width) that
  /// the PTX ISA calls leading and stride dimension byte offset.
  __device__ constexpr MatrixDescriptor(SharedAddress tile, std::uint32_t leading, std::uint32_t stride, Swizzle swizzle)
      : low((tile >> 4) | ((leading >> 4) << 16)), high((stride >> 4) | (static_cast<std::uint32_t>(swizzle) << 30)) {}

  /// The same for a tile that begins `bytes` further on.
  [[nodiscard]] __device__ constexpr MatrixDescriptor after(int bytes) const {
    MatrixDescriptor other = *this;
    other.low += static_cast<std::uint32_t>(bytes) >> 4;
    return other;
  }

  [[nodiscard]] __device__ std::uint64_t word() const {
    std::uint64_t word;
    asm("mov.b64 %0, {%1, %2};" : "=l"(word) : "r"(low), "r"(high));
    return word;
  }
};

/// The values of 16 tokens of a stage, and the ones after them: with 64 columns of values, the ones in columns 64-71 are at
/// the distance `leading`, in a tile of their own.
template <class Layout>
__device__ MatrixDescriptor values_and_ones(int stage, int step) {
  const SharedAddress tile = Layout::values + stage * Layout::value_tile + step * 16 * Layout::value_row;
  return {tile, Layout::ones_apart ? Layout::ones - tile : 0, 8 * Layout::value_row, Swizzle::bytes_128};
}

/// Orders earlier writes of registers before the products that follow.
__device__ inline void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" : : : "memory");
}
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory");
}
/// Waits until all but the last `pending` groups are done.
template <int pending>
__device__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(pending) : "memory");
}
/// Keeps reads of `values` after this point: the compiler cannot see that waiting changes registers.
template <int count>
__device__ void fence_accumulators(float (&values)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i) {
    asm volatile("" : "+f"(values[i]) : : "memory");
  }
}

/// sums (64 x columns) = left · right, plus the old sums where `keep` is not 0; right is stored with its columns
/// contiguous.
template <int columns>
struct WarpgroupProduct;

// One form for each width; the operands of an instruction cannot be computed. The name of the type is part of the text.
// clang-format off
#define JRT_DETAIL_MULTIPLY(type)                                                                                       \
  asm volatile(                                                                                                         \
        "{\n"                                                                                                           \
        ".reg .pred keep;\n"                                                                                            \
        "setp.ne.b32 keep, %13, 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n16k16.f32." type "." type " "                                                 \
        "{%0,%1,%2,%3,%4,%5,%6,%7}, "                                                                                   \
        "{%8, %9, %10, %11}, %12, keep, 1, 1, 1;\n"                                                                     \
        "}\n"                                                                                                           \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]),                                                   \
          "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7])                                                    \
        : "r"(left.pairs[0]), "r"(left.pairs[1]), "r"(left.pairs[2]), "r"(left.pairs[3]), "l"(right), "r"(keep))
template <>
struct WarpgroupProduct<16> {
  template <class Element>
  static __device__ void add(float (&sums)[8], const LeftFragment& left, std::uint64_t right, int keep) {
    if constexpr (std::is_same_v<Element, Half>) {
      JRT_DETAIL_MULTIPLY("f16");
    } else {
      JRT_DETAIL_MULTIPLY("bf16");
    }
  }
};
#undef JRT_DETAIL_MULTIPLY

#define JRT_DETAIL_MULTIPLY(type)                                                                                       \
  asm volatile(                                                                                                         \
        "{\n"                                                                                                           \
        ".reg .pred keep;\n"                                                                                            \
        "setp.ne.b32 keep, %17, 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n24k16.f32." type "." type " "                                                 \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11}, "                                                                     \
        "{%12, %13, %14, %15}, %16, keep, 1, 1, 1;\n"                                                                   \
        "}\n"                                                                                                           \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]),                                                   \
          "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),                                                   \
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11])                                                  \
        : "r"(left.pairs[0]), "r"(left.pairs[1]), "r"(left.pairs[2]), "r"(left.pairs[3]), "l"(right), "r"(keep))
template <>
struct WarpgroupProduct<24> {
  template <class Element>
  static __device__ void add(float (&sums)[12], const LeftFragment& left, std::uint64_t right, int keep) {
    if constexpr (std::is_same_v<Element, Half>) {
      JRT_DETAIL_MULTIPLY("f16");
    } else {
      JRT_DETAIL_MULTIPLY("bf16");
    }
  }
};
#undef JRT_DETAIL_MULTIPLY

#define JRT_DETAIL_MULTIPLY(type)                                                                                       \
  asm volatile(                                                                                                         \
        "{\n"                                                                                                           \
        ".reg .pred keep;\n"                                                                                            \
        "setp.ne.b32 keep, %21, 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type " "                                                 \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, "                                                     \
        "{%16, %17, %18, %19}, %20, keep, 1, 1, 1;\n"                                                                   \
        "}\n"                                                                                                           \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]),                                                   \
          "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),                                                   \
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]),                                                 \
          "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15])                                                \
        : "r"(left.pairs[0]), "r"(left.pairs[1]), "r"(left.pairs[2]), "r"(left.pairs[3]), "l"(right), "r"(keep))
template <>
struct WarpgroupProduct<32> {
  template <class Element>
  static __device__ void add(float (&sums)[16], const LeftFragment& left, std::uint64_t right, int keep) {
    if constexpr (std::is_same_v<Element, Half>) {
      JRT_DETAIL_MULTIPLY("f16");
    } else {
      JRT_DETAIL_MULTIPLY("bf16");
    }
  }
};
#undef JRT_DETAIL_MULTIPLY

#define JRT_DETAIL_MULTIPLY(type)                                                                                       \
  asm volatile(                                                                                                         \
        "{\n"                                                                                                           \
        ".reg .pred keep;\n"                                                                                            \
        "setp.ne.b32 keep, %25, 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n40k16.f32." type "." type " "                                                 \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19}, "                                     \
        "{%20, %21, %22, %23}, %24, keep, 1, 1, 1;\n"                                                                   \
        "}\n"                                                                                                           \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]),                                                   \
          "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),                                                   \
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]),                                                 \
          "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]),                                               \
          "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19])                                                \
        : "r"(left.pairs[0]), "r"(left.pairs[1]), "r"(left.pairs[2]), "r"(left.pairs[3]), "l"(right), "r"(keep))
template <>
struct WarpgroupProduct<40> {
  template <class Element>
  static __device__ void add(float (&sums)[20], const LeftFragment& left, std::uint64_t right, int keep) {
    if constexpr (std::is_same_v<Element, Half>) {
      JRT_DETAIL_MULTIPLY("f16");
    } else {
      JRT_DETAIL_MULTIPLY("bf16");
    }
  }
};
#undef JRT_DETAIL_MULTIPLY

#define JRT_DETAIL_MULTIPLY(type)                                                                                       \
  asm volatile(                                                                                                         \
        "{\n"                                                                                                           \
        ".reg .pred keep;\n"                                                                                            \
        "setp.ne.b32 keep, %29, 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n48k16.f32." type "." type " "                                                 \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23}, "                     \
        "{%24, %25, %26, %27}, %28, keep, 1, 1, 1;\n"                                                                   \
        "}\n"                                                                                                           \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]),                                                   \
          "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),                                                   \
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]),                                                 \
          "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]),                                               \
          "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]),                                               \
          "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23])                                                \
        : "r"(left.pairs[0]), "r"(left.pairs[1]), "r"(left.pairs[2]), "r"(left.pairs[3]), "l"(right), "r"(keep))
template <>
struct WarpgroupProduct<48> {
  template <class Element>
  static __device__ void add(float (&sums)[24], const LeftFragment& left, std::uint64_t right, int keep) {
    if constexpr (std::is_same_v<Element, Half>) {
      JRT_DETAIL_MULTIPLY("f16");
    } else {
      JRT_DETAIL_MULTIPLY("bf16");
    }
  }
};
#undef JRT_DETAIL_MULTIPLY

#define JRT_DETAIL_MULTIPLY(type)                                                                                       \
  asm volatile(                                                                                                         \
        "{\n"                                                                                                           \
        ".reg .pred keep;\n"                                                                                            \
        "setp.ne.b32 keep, %33, 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n56k16.f32." type "." type " "                                                 \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27}, "     \
        "{%28, %29, %30, %31}, %32, keep, 1, 1, 1;\n"                                                                   \
        "}\n"                                                                                                           \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]),                                                   \
          "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),                                                   \
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]),                                                 \
          "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]),                                               \
          "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]),                                               \
          "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]),                                               \
          "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27])                                                \
        : "r"(left.pairs[0]), "r"(left.pairs[1]), "r"(left.pairs[2]), "r"(left.pairs[3]), "l"(right), "r"(keep))
template <>
struct WarpgroupProduct<56> {
  template <class Element>
  static __device__ void add(float (&sums)[28], const LeftFragment& left, std::uint64_t right, int keep) {
    if constexpr (std::is_same_v<Element, Half>) {
      JRT_DETAIL_MULTIPLY("f16");
    } else {
      JRT_DETAIL_MULTIPLY("bf16");
    }
  }
};
#undef JRT_DETAIL_MULTIPLY

#define JRT_DETAIL_MULTIPLY(type)                                                                                       \
  asm volatile(                                                                                                         \
        "{\n"                                                                                                           \
        ".reg .pred keep;\n"                                                                                            \
        "setp.ne.b32 keep, %37, 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " "                                                 \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,"       \
        "%28,%29,%30,%31}, "                                                                                            \
        "{%32, %33, %34, %35}, %36, keep, 1, 1, 1;\n"                                                                   \
        "}\n"                                                                                                           \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]),                                                   \
          "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),                                                   \
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]),                                                 \
          "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]),                                               \
          "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]),                                               \
          "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]),                                               \
          "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]),                                               \
          "+f"(sums[28]), "+f"(sums[29]), "+f"(sums[30]), "+f"(sums[31])                                                \
        : "r"(left.pairs[0]), "r"(left.pairs[1]), "r"(left.pairs[2]), "r"(left.pairs[3]), "l"(right), "r"(keep))
template <>
struct WarpgroupProduct<64> {
  template <class Element>
  static __device__ void add(float (&sums)[32], const LeftFragment& left, std::uint64_t right, int keep) {
    if constexpr (std::is_same_v<Element, Half>) {
      JRT_DETAIL_MULTIPLY("f16");
    } else {
      JRT_DETAIL_MULTIPLY("bf16");
    }
  }
};
#undef JRT_DETAIL_MULTIPLY

#define JRT_DETAIL_MULTIPLY(type)                                                                                       \
  asm volatile(                                                                                                         \
        "{\n"                                                                                                           \
        ".reg .pred keep;\n"                                                                                            \
        "setp.ne.b32 keep, %41, 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n72k16.f32." type "." type " "                                                 \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,"       \
        "%28,%29,%30,%31,%32,%33,%34,%35}, "                                                                            \
        "{%36, %37, %38, %39}, %40, keep, 1, 1, 1;\n"                                                                   \
        "}\n"                                                                                                           \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]),                                                   \
          "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),                                                   \
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]),                                                 \
          "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]),                                               \
          "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]),                                               \
          "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]),                                               \
          "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]),                                               \
          "+f"(sums[28]), "+f"(sums[29]), "+f"(sums[30]), "+f"(sums[31]),                                               \
          "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]), "+f"(sums[35])                                                \
        : "r"(left.pairs[0]), "r"(left.pairs[1]), "r"(left.pairs[2]), "r"(left.pairs[3]), "l"(right), "r"(keep))
template <>
struct WarpgroupProduct<72> {
  template <class Element>
  static __device__ void add(float (&sums)[36], const LeftFragment& left, std::uint64_t right, int keep) {
    if constexpr (std::is_same_v<Element, Half>) {
      JRT_DETAIL_MULTIPLY("f16");
    } else {
      JRT_DETAIL_MULTIPLY("bf16");
    }
  }
};
#undef JRT_DETAIL_MULTIPLY

#define JRT_DETAIL_MULTIPLY(type)                                                                                       \
  asm volatile(                                                                                                         \
        "{\n"                                                                                                           \
        ".reg .pred keep;\n"                                                                                            \
        "setp.ne.b32 keep, 0, 0;\n"                                                                                     \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " "                                                 \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                                       \
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "                                            \
        "%32, %33, keep, 1, 1, 0, 0;\n"                                                                                 \
        "}\n"                                                                                                           \
        : "=f"(sums[0]), "=f"(sums[1]), "=f"(sums[2]), "=f"(sums[3]),                                                   \
          "=f"(sums[4]), "=f"(sums[5]), "=f"(sums[6]), "=f"(sums[7]),                                                   \
          "=f"(sums[8]), "=f"(sums[9]), "=f"(sums[10]), "=f"(sums[11]),                                                 \
          "=f"(sums[12]), "=f"(sums[13]), "=f"(sums[14]), "=f"(sums[15]),                                               \
          "=f"(sums[16]), "=f"(sums[17]), "=f"(sums[18]), "=f"(sums[19]),                                               \
          "=f"(sums[20]), "=f"(sums[21]), "=f"(sums[22]), "=f"(sums[23]),                                               \
          "=f"(sums[24]), "=f"(sums[25]), "=f"(sums[26]), "=f"(sums[27]),                                               \
          "=f"(sums[28]), "=f"(sums[29]), "=f"(sums[30]), "=f"(sums[31])                                                \
        : "l"(left), "l"(right))
/// sums (64 x 64) = left · rightᵀ over a depth of 16, both in shared memory with their rows contiguous.
template <class Element>
__device__ void multiply_tiles(float (&sums)[32], std::uint64_t left, std::uint64_t right) {
  if constexpr (std::is_same_v<Element, Half>) {
    JRT_DETAIL_MULTIPLY("f16");
  } else {
    JRT_DETAIL_MULTIPLY("bf16");
  }
}
#undef JRT_DETAIL_MULTIPLY

#define JRT_DETAIL_MULTIPLY(type)                                                                                       \
  asm volatile(                                                                                                         \
        "{\n"                                                                                                           \
        ".reg .pred keep;\n"                                                                                            \
        "setp.eq.b32 keep, 0, 0;\n"                                                                                    \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " "                                                 \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                                       \
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "                                            \
        "%32, %33, keep, 1, 1, 0, 0;\n"                                                                                 \
        "}\n"                                                                                                           \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]),                                                   \
          "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),                                                   \
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]),                                                 \
          "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]),                                               \
          "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]),                                               \
          "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]),                                               \
          "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]),                                               \
          "+f"(sums[28]), "+f"(sums[29]), "+f"(sums[30]), "+f"(sums[31])                                                \
        : "l"(left), "l"(right))
/// The same, added to the sums.
template <class Element>
__device__ void add_tiles(float (&sums)[32], std::uint64_t left, std::uint64_t right) {
  if constexpr (std::is_same_v<Element, Half>) {
    JRT_DETAIL_MULTIPLY("f16");
  } else {
    JRT_DETAIL_MULTIPLY("bf16");
  }
}
#undef JRT_DETAIL_MULTIPLY
// clang-format on

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
