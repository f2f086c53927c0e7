// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/numeric.hpp"

/// Products of more columns than product.cuh has.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

// clang-format off
#define JRT_DETAIL_MULTIPLY(type)                                                                                       \
  asm volatile(                                                                                                         \
        "{\n"                                                                                                           \
        ".reg .pred keep;\n"                                                                                            \
        "setp.ne.b32 keep, %45, 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n80k16.f32." type "." type " "                                                 \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"                   \
        "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39}, "                                                \
        "{%40, %41, %42, %43}, %44, keep, 1, 1, 1;\n"                                                                   \
        "}\n"                                                                                                           \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]),                     \
          "+f"(sums[6]), "+f"(sums[7]), "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]),                   \
          "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]), "+f"(sums[16]), "+f"(sums[17]),               \
          "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]),               \
          "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), "+f"(sums[28]), "+f"(sums[29]),               \
          "+f"(sums[30]), "+f"(sums[31]), "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]), "+f"(sums[35]),               \
          "+f"(sums[36]), "+f"(sums[37]), "+f"(sums[38]), "+f"(sums[39])                                                \
        : "r"(left.pairs[0]), "r"(left.pairs[1]), "r"(left.pairs[2]), "r"(left.pairs[3]), "l"(right), "r"(keep))
template <>
struct WarpgroupProduct<80> {
  template <class Element>
  static __device__ void add(float (&sums)[40], const LeftFragment& left, std::uint64_t right, int keep) {
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
        "setp.ne.b32 keep, %49, 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n88k16.f32." type "." type " "                                                 \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"                   \
        "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43}, "                                \
        "{%44, %45, %46, %47}, %48, keep, 1, 1, 1;\n"                                                                   \
        "}\n"                                                                                                           \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]),                     \
          "+f"(sums[6]), "+f"(sums[7]), "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]),                   \
          "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]), "+f"(sums[16]), "+f"(sums[17]),               \
          "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]),               \
          "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), "+f"(sums[28]), "+f"(sums[29]),               \
          "+f"(sums[30]), "+f"(sums[31]), "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]), "+f"(sums[35]),               \
          "+f"(sums[36]), "+f"(sums[37]), "+f"(sums[38]), "+f"(sums[39]), "+f"(sums[40]), "+f"(sums[41]),               \
          "+f"(sums[42]), "+f"(sums[43])                                                                                \
        : "r"(left.pairs[0]), "r"(left.pairs[1]), "r"(left.pairs[2]), "r"(left.pairs[3]), "l"(right), "r"(keep))
template <>
struct WarpgroupProduct<88> {
  template <class Element>
  static __device__ void add(float (&sums)[44], const LeftFragment& left, std::uint64_t right, int keep) {
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
        "setp.ne.b32 keep, %53, 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n96k16.f32." type "." type " "                                                 \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"                   \
        "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,"                      \
        "%47}, "                                                                                                        \
        "{%48, %49, %50, %51}, %52, keep, 1, 1, 1;\n"                                                                   \
        "}\n"                                                                                                           \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]),                     \
          "+f"(sums[6]), "+f"(sums[7]), "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]),                   \
          "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]), "+f"(sums[16]), "+f"(sums[17]),               \
          "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]),               \
          "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), "+f"(sums[28]), "+f"(sums[29]),               \
          "+f"(sums[30]), "+f"(sums[31]), "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]), "+f"(sums[35]),               \
          "+f"(sums[36]), "+f"(sums[37]), "+f"(sums[38]), "+f"(sums[39]), "+f"(sums[40]), "+f"(sums[41]),               \
          "+f"(sums[42]), "+f"(sums[43]), "+f"(sums[44]), "+f"(sums[45]), "+f"(sums[46]), "+f"(sums[47])                \
        : "r"(left.pairs[0]), "r"(left.pairs[1]), "r"(left.pairs[2]), "r"(left.pairs[3]), "l"(right), "r"(keep))
template <>
struct WarpgroupProduct<96> {
  template <class Element>
  static __device__ void add(float (&sums)[48], const LeftFragment& left, std::uint64_t right, int keep) {
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
        "setp.ne.b32 keep, %57, 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n104k16.f32." type "." type " "                                                \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"                   \
        "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                  \
        "%48,%49,%50,%51}, "                                                                                            \
        "{%52, %53, %54, %55}, %56, keep, 1, 1, 1;\n"                                                                   \
        "}\n"                                                                                                           \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]),                     \
          "+f"(sums[6]), "+f"(sums[7]), "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]),                   \
          "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]), "+f"(sums[16]), "+f"(sums[17]),               \
          "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]),               \
          "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), "+f"(sums[28]), "+f"(sums[29]),               \
          "+f"(sums[30]), "+f"(sums[31]), "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]), "+f"(sums[35]),               \
          "+f"(sums[36]), "+f"(sums[37]), "+f"(sums[38]), "+f"(sums[39]), "+f"(sums[40]), "+f"(sums[41]),               \
          "+f"(sums[42]), "+f"(sums[43]), "+f"(sums[44]), "+f"(sums[45]), "+f"(sums[46]), "+f"(sums[47]),               \
          "+f"(sums[48]), "+f"(sums[49]), "+f"(sums[50]), "+f"(sums[51])                                                \
        : "r"(left.pairs[0]), "r"(left.pairs[1]), "r"(left.pairs[2]), "r"(left.pairs[3]), "l"(right), "r"(keep))
template <>
struct WarpgroupProduct<104> {
  template <class Element>
  static __device__ void add(float (&sums)[52], const LeftFragment& left, std::uint64_t right, int keep) {
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
        "setp.ne.b32 keep, %61, 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n112k16.f32." type "." type " "                                                \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"                   \
        "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                  \
        "%48,%49,%50,%51,%52,%53,%54,%55}, "                                                                            \
        "{%56, %57, %58, %59}, %60, keep, 1, 1, 1;\n"                                                                   \
        "}\n"                                                                                                           \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]),                     \
          "+f"(sums[6]), "+f"(sums[7]), "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]),                   \
          "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]), "+f"(sums[16]), "+f"(sums[17]),               \
          "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]),               \
          "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), "+f"(sums[28]), "+f"(sums[29]),               \
          "+f"(sums[30]), "+f"(sums[31]), "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]), "+f"(sums[35]),               \
          "+f"(sums[36]), "+f"(sums[37]), "+f"(sums[38]), "+f"(sums[39]), "+f"(sums[40]), "+f"(sums[41]),               \
          "+f"(sums[42]), "+f"(sums[43]), "+f"(sums[44]), "+f"(sums[45]), "+f"(sums[46]), "+f"(sums[47]),               \
          "+f"(sums[48]), "+f"(sums[49]), "+f"(sums[50]), "+f"(sums[51]), "+f"(sums[52]), "+f"(sums[53]),               \
          "+f"(sums[54]), "+f"(sums[55])                                                                                \
        : "r"(left.pairs[0]), "r"(left.pairs[1]), "r"(left.pairs[2]), "r"(left.pairs[3]), "l"(right), "r"(keep))
template <>
struct WarpgroupProduct<112> {
  template <class Element>
  static __device__ void add(float (&sums)[56], const LeftFragment& left, std::uint64_t right, int keep) {
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
        "setp.ne.b32 keep, %65, 0;\n"                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n120k16.f32." type "." type " "                                                \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"                   \
        "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                  \
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59}, "                                                            \
        "{%60, %61, %62, %63}, %64, keep, 1, 1, 1;\n"                                                                   \
        "}\n"                                                                                                           \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]),                     \
          "+f"(sums[6]), "+f"(sums[7]), "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]),                   \
          "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]), "+f"(sums[16]), "+f"(sums[17]),               \
          "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]),               \
          "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), "+f"(sums[28]), "+f"(sums[29]),               \
          "+f"(sums[30]), "+f"(sums[31]), "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]), "+f"(sums[35]),               \
          "+f"(sums[36]), "+f"(sums[37]), "+f"(sums[38]), "+f"(sums[39]), "+f"(sums[40]), "+f"(sums[41]),               \
          "+f"(sums[42]), "+f"(sums[43]), "+f"(sums[44]), "+f"(sums[45]), "+f"(sums[46]), "+f"(sums[47]),               \
          "+f"(sums[48]), "+f"(sums[49]), "+f"(sums[50]), "+f"(sums[51]), "+f"(sums[52]), "+f"(sums[53]),               \
          "+f"(sums[54]), "+f"(sums[55]), "+f"(sums[56]), "+f"(sums[57]), "+f"(sums[58]), "+f"(sums[59])                \
        : "r"(left.pairs[0]), "r"(left.pairs[1]), "r"(left.pairs[2]), "r"(left.pairs[3]), "l"(right), "r"(keep))
template <>
struct WarpgroupProduct<120> {
  template <class Element>
  static __device__ void add(float (&sums)[60], const LeftFragment& left, std::uint64_t right, int keep) {
    if constexpr (std::is_same_v<Element, Half>) {
      JRT_DETAIL_MULTIPLY("f16");
    } else {
      JRT_DETAIL_MULTIPLY("bf16");
    }
  }
};
#undef JRT_DETAIL_MULTIPLY
// clang-format on

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
