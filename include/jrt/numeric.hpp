// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>

#include "jrt/detail/host_device.hpp"

/// Scalar types: the two 16-bit storage formats, and the compute type of each element type.
namespace jrt {

namespace detail {

// The conversions are branch-free (selects only), so that a loop over a row of elements vectorises.

JRT_DETAIL_HD constexpr float half_bits_to_float(std::uint16_t bits) {
  // Exponent and mantissa moved to float's places denote value * 2^-112, exactly, subnormals included.
  const auto magnitude = static_cast<std::uint32_t>(bits & 0x7fffu) << 13;
  const auto finite = __builtin_bit_cast(std::uint32_t, __builtin_bit_cast(float, magnitude) * 0x1p112F);
  const std::uint32_t infinite_or_nan = magnitude | 0x7f800000u;
  const auto sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  return __builtin_bit_cast(float, sign | (magnitude >= 0x0f800000u ? infinite_or_nan : finite));
}

JRT_DETAIL_HD constexpr std::uint16_t float_to_half_bits(float value) {
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Normal range: rebias the exponent and round the 13 dropped bits to nearest, ties to even; overflow becomes infinity.
  const std::uint32_t odd = (magnitude >> 13) & 1u;
  const std::uint32_t normal = (magnitude - (112u << 23) + 0x0fffu + odd) >> 13;
  // Subnormal range (below 2^-14): adding 0.5 makes the float adder round to a multiple of 2^-24, the last place of half.
  const auto shifted = __builtin_bit_cast(std::uint32_t, __builtin_bit_cast(float, magnitude) + 0.5F);
  const std::uint32_t subnormal = shifted - __builtin_bit_cast(std::uint32_t, 0.5F);
  const std::uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const std::uint32_t nan_or_infinity = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const std::uint32_t result = magnitude >= 0x477ff000u ? nan_or_infinity : finite;
  return static_cast<std::uint16_t>(result | ((bits >> 16) & 0x8000u));
}

JRT_DETAIL_HD constexpr float bfloat16_bits_to_float(std::uint16_t bits) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
}

JRT_DETAIL_HD constexpr std::uint16_t float_to_bfloat16_bits(float value) {
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet_nan = (bits >> 16) | 0x0040u;
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

#if defined(__CUDA_ARCH__)

// On the device the conversions are single instructions (PTX ISA, "cvt"). They agree with the functions above on everything
// but the bits of a NaN.
__device__ inline float device_half_to_float(std::uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
__device__ inline std::uint16_t device_float_to_half(float value) {
  std::uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
__device__ inline std::uint16_t device_float_to_bfloat16(float value) {
  std::uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

#endif

JRT_DETAIL_HD constexpr float widened_half(std::uint16_t bits) {
#if defined(__CUDA_ARCH__)
  if (!__builtin_is_constant_evaluated()) {
    return device_half_to_float(bits);
  }
#endif
  return half_bits_to_float(bits);
}
JRT_DETAIL_HD constexpr std::uint16_t rounded_to_half(float value) {
#if defined(__CUDA_ARCH__)
  if (!__builtin_is_constant_evaluated()) {
    return device_float_to_half(value);
  }
#endif
  return float_to_half_bits(value);
}
JRT_DETAIL_HD constexpr std::uint16_t rounded_to_bfloat16(float value) {
#if defined(__CUDA_ARCH__)
  if (!__builtin_is_constant_evaluated()) {
    return device_float_to_bfloat16(value);
  }
#endif
  return float_to_bfloat16_bits(value);
}

}  // namespace detail

/// IEEE 754 binary16, for storage. Bit-compatible with CUDA's `__half`, Eigen's `half` and ggml's `ggml_fp16_t`, so that
/// an engine's pointer may be passed by reinterpreting it. Conversion from float rounds to nearest, ties to even; all
/// arithmetic is done in float.
struct Half {
  std::uint16_t bits = 0;

  constexpr Half() = default;
  JRT_DETAIL_HD constexpr explicit Half(float value) : bits(detail::rounded_to_half(value)) {}
  JRT_DETAIL_HD constexpr explicit operator float() const { return detail::widened_half(bits); }
  friend constexpr bool operator==(Half, Half) = default;
};

/// bfloat16 (the upper half of a float), for storage. Bit-compatible with CUDA's `__nv_bfloat16` and Eigen's `bfloat16`.
/// Conversion from float rounds to nearest, ties to even; all arithmetic is done in float.
struct BFloat16 {
  std::uint16_t bits = 0;

  constexpr BFloat16() = default;
  JRT_DETAIL_HD constexpr explicit BFloat16(float value) : bits(detail::rounded_to_bfloat16(value)) {}
  JRT_DETAIL_HD constexpr explicit operator float() const { return detail::bfloat16_bits_to_float(bits); }
  friend constexpr bool operator==(BFloat16, BFloat16) = default;
};

/// Element type of queries, keys, values, outputs and stored states.
template <class T>
concept Element = std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, Half> || std::same_as<T, BFloat16>;

/// The type in which sums over elements of type `T` are formed: double for double, float for all others.
template <Element T>
using ComputeType = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// Converts between element types and compute types; through float where one side has 16 bits.
template <Element To, Element From>
JRT_DETAIL_HD constexpr To convert(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (std::is_floating_point_v<To> && std::is_floating_point_v<From>) {
    return static_cast<To>(value);
  } else {
    return static_cast<To>(static_cast<float>(value));
  }
}

/// Name of an element type in messages and saved states.
template <Element T>
constexpr const char* element_name() {
  if constexpr (std::is_same_v<T, float>) {
    return "float32";
  } else if constexpr (std::is_same_v<T, double>) {
    return "float64";
  } else if constexpr (std::is_same_v<T, Half>) {
    return "float16";
  } else {
    return "bfloat16";
  }
}

}  // namespace jrt
