// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <limits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/shared/window/online_softmax.hpp"

/// The exponentials of the window kernels' softmax.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

__device__ inline float power_of_two(float exponent) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(exponent));
  return power;
}

/// e^(s − m) with a finite `lowest`, below which no score is, so that differences are finite: lanes without keys need no
/// case of their own.
template <class T>
struct FiniteExponential {
  static constexpr T lowest = -std::numeric_limits<T>::max() / 4;

  static __device__ T shift(T maximum) { return maximum; }
  static __device__ T of(T score, T shift) { return exp(score - shift); }
  static __device__ T logarithm(T sum, T shift) { return shift + log(sum); }
};

/// The same for 16-bit elements: its error, 2^-21, is less than that of the values that it weights.
struct FastFiniteExponential : FiniteExponential<float> {
  static __device__ float of(float score, float shift) { return __expf(score - shift); }
};

/// e^(scale (s − m)) = 2^(scale log₂e (s − m)) of scores without their scale, in one multiplication and addition each. The
/// scale is taken as positive; the caller applies the sign of a negative one to the scores or the queries.
struct ScaledExponential {
  static constexpr float lowest = -std::numeric_limits<float>::infinity();

  float scale;

  /// The scale is never 0, so that masked scores stay −∞.
  __device__ explicit ScaledExponential(double of_scores)
      : scale(fmaxf(fabsf(static_cast<float>(of_scores)), 1e-30F) * 1.4426950408889634F) {}

  [[nodiscard]] __device__ float shift(float maximum) const { return maximum == lowest ? 0.0F : maximum * scale; }
  [[nodiscard]] __device__ float of(float score, float shift) const { return power_of_two(score * scale - shift); }
  [[nodiscard]] __device__ float logarithm(float sum, float shift) const { return (shift + log2f(sum)) * 0.69314718F; }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
