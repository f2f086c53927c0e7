// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Names of the inline namespaces that hold the backends. A backend's code and the layout of its classes depend on the
/// instruction set and on the list of GPU architectures that a translation unit is compiled for. Under one name the linker
/// would keep one of two different definitions; with these names each translation unit has its own, and passing an
/// execution argument between two that differ gives an undefined symbol instead of a wrong result.
///
///     namespace jrt::detail::cpu { inline namespace JRT_DETAIL_CPU_ABI { … } }       isa_ and a digit for each extension
///     below namespace jrt::detail::cuda { inline namespace JRT_DETAIL_CUDA_ABI { … } }     sm_ and the list: sm_800_900

#if defined(__SSE4_1__)
#define JRT_DETAIL_ABI_SSE41 1
#else
#define JRT_DETAIL_ABI_SSE41 0
#endif
#if defined(__AVX2__)
#define JRT_DETAIL_ABI_AVX 2
#elif defined(__AVX__)
#define JRT_DETAIL_ABI_AVX 1
#else
#define JRT_DETAIL_ABI_AVX 0
#endif
#if defined(__FMA__)
#define JRT_DETAIL_ABI_FMA 1
#else
#define JRT_DETAIL_ABI_FMA 0
#endif
#if defined(__F16C__)
#define JRT_DETAIL_ABI_F16C 1
#else
#define JRT_DETAIL_ABI_F16C 0
#endif
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define JRT_DETAIL_ABI_AVX512 2
#elif defined(__AVX512F__)
#define JRT_DETAIL_ABI_AVX512 1
#else
#define JRT_DETAIL_ABI_AVX512 0
#endif
#if defined(__AVX512FP16__)
#define JRT_DETAIL_ABI_FP16 1
#else
#define JRT_DETAIL_ABI_FP16 0
#endif
#if defined(__ARM_FEATURE_SVE)
#define JRT_DETAIL_ABI_ARM 2
#elif defined(__ARM_NEON)
#define JRT_DETAIL_ABI_ARM 1
#else
#define JRT_DETAIL_ABI_ARM 0
#endif
// Eigen's packets can be turned off.
#if defined(EIGEN_DONT_VECTORIZE)
#define JRT_DETAIL_ABI_SCALAR 1
#else
#define JRT_DETAIL_ABI_SCALAR 0
#endif

#define JRT_DETAIL_ABI_PASTE(a, b, c, d, e, f, g, h) isa_##a##b##c##d##e##f##g##h
#define JRT_DETAIL_ABI_EXPAND(a, b, c, d, e, f, g, h) JRT_DETAIL_ABI_PASTE(a, b, c, d, e, f, g, h)
#define JRT_DETAIL_CPU_ABI                                                                                 \
  JRT_DETAIL_ABI_EXPAND(JRT_DETAIL_ABI_SSE41, JRT_DETAIL_ABI_AVX, JRT_DETAIL_ABI_FMA, JRT_DETAIL_ABI_F16C, \
                        JRT_DETAIL_ABI_AVX512, JRT_DETAIL_ABI_FP16, JRT_DETAIL_ABI_ARM, JRT_DETAIL_ABI_SCALAR)

// The list is separated by commas: the macros below join its values one after the other (16 at most).
#define JRT_DETAIL_ABI_JOIN(a, b) a##_##b
#define JRT_DETAIL_ABI_JOINED(a, b) JRT_DETAIL_ABI_JOIN(a, b)
#define JRT_DETAIL_ABI_LIST_1(a) a
#define JRT_DETAIL_ABI_LIST_2(a, ...) JRT_DETAIL_ABI_JOINED(a, JRT_DETAIL_ABI_LIST_1(__VA_ARGS__))
#define JRT_DETAIL_ABI_LIST_3(a, ...) JRT_DETAIL_ABI_JOINED(a, JRT_DETAIL_ABI_LIST_2(__VA_ARGS__))
#define JRT_DETAIL_ABI_LIST_4(a, ...) JRT_DETAIL_ABI_JOINED(a, JRT_DETAIL_ABI_LIST_3(__VA_ARGS__))
#define JRT_DETAIL_ABI_LIST_5(a, ...) JRT_DETAIL_ABI_JOINED(a, JRT_DETAIL_ABI_LIST_4(__VA_ARGS__))
#define JRT_DETAIL_ABI_LIST_6(a, ...) JRT_DETAIL_ABI_JOINED(a, JRT_DETAIL_ABI_LIST_5(__VA_ARGS__))
#define JRT_DETAIL_ABI_LIST_7(a, ...) JRT_DETAIL_ABI_JOINED(a, JRT_DETAIL_ABI_LIST_6(__VA_ARGS__))
#define JRT_DETAIL_ABI_LIST_8(a, ...) JRT_DETAIL_ABI_JOINED(a, JRT_DETAIL_ABI_LIST_7(__VA_ARGS__))
#define JRT_DETAIL_ABI_LIST_9(a, ...) JRT_DETAIL_ABI_JOINED(a, JRT_DETAIL_ABI_LIST_8(__VA_ARGS__))
#define JRT_DETAIL_ABI_LIST_10(a, ...) JRT_DETAIL_ABI_JOINED(a, JRT_DETAIL_ABI_LIST_9(__VA_ARGS__))
#define JRT_DETAIL_ABI_LIST_11(a, ...) JRT_DETAIL_ABI_JOINED(a, JRT_DETAIL_ABI_LIST_10(__VA_ARGS__))
#define JRT_DETAIL_ABI_LIST_12(a, ...) JRT_DETAIL_ABI_JOINED(a, JRT_DETAIL_ABI_LIST_11(__VA_ARGS__))
#define JRT_DETAIL_ABI_LIST_13(a, ...) JRT_DETAIL_ABI_JOINED(a, JRT_DETAIL_ABI_LIST_12(__VA_ARGS__))
#define JRT_DETAIL_ABI_LIST_14(a, ...) JRT_DETAIL_ABI_JOINED(a, JRT_DETAIL_ABI_LIST_13(__VA_ARGS__))
#define JRT_DETAIL_ABI_LIST_15(a, ...) JRT_DETAIL_ABI_JOINED(a, JRT_DETAIL_ABI_LIST_14(__VA_ARGS__))
#define JRT_DETAIL_ABI_LIST_16(a, ...) JRT_DETAIL_ABI_JOINED(a, JRT_DETAIL_ABI_LIST_15(__VA_ARGS__))
#define JRT_DETAIL_ABI_PICK(a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15, a16, n, ...) n
#define JRT_DETAIL_ABI_COUNT(...) JRT_DETAIL_ABI_PICK(__VA_ARGS__, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)
#define JRT_DETAIL_ABI_CALL(macro, n, ...) JRT_DETAIL_ABI_CALLED(macro, n, __VA_ARGS__)
#define JRT_DETAIL_ABI_CALLED(macro, n, ...) macro##n(__VA_ARGS__)
#define JRT_DETAIL_ABI_LIST(...) JRT_DETAIL_ABI_CALL(JRT_DETAIL_ABI_LIST_, JRT_DETAIL_ABI_COUNT(__VA_ARGS__), __VA_ARGS__)

#if defined(__CUDA_ARCH_LIST__)
#define JRT_DETAIL_CUDA_ABI JRT_DETAIL_ABI_JOINED(sm, JRT_DETAIL_ABI_LIST(__CUDA_ARCH_LIST__))
#else
#define JRT_DETAIL_CUDA_ABI sm_none
#endif
