// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>

#include "jrt/detail/language.hpp"

namespace jrt {

/// Policy: how a prefill multiplies float elements. It changes speed and the last digits, not the state's type or format.
///
/// Requires:   `static constexpr bool splits_numbers`: whether a number may be multiplied as the sum of two shorter ones.
/// Guarantees: results repeat from run to run; states have the format of the same operator with other products.
/// Cost:       see the two policies.
/// Default:    `FloatProducts`.
/// Tested by:  tests/policy/products_test.cpp, tests/cuda/warpgroup_test.cu
template <class P>
concept Products = requires {
  { P::splits_numbers } -> std::convertible_to<bool>;
};

/// Every product is one of float, on ordinary arithmetic units.
struct FloatProducts {
  static constexpr bool splits_numbers = false;
};

/// Float on a GPU's matrix units, which multiply shorter numbers: each number is the sum a + a' of two bfloat16 (16 bits of
/// its 24), and a product is a·b + a·b' + a'·b. Features are formed in float before that, or (keys' on Hopper) from inputs
/// that are such sums. Sums are of float. Errors are some 7e-6 of the result (5e-6 on other GPUs) instead of some 1e-6, and
/// at most 1e-5. Range is that of float.
///
/// Two terms of TF32 would have 22 bits at half the speed: the matrix unit multiplies TF32 at half the rate of bfloat16, so
/// three products of it take six times as long as one of bfloat16.
///
/// Only a prefill (and `accumulate`) on CUDA does this; the CPU backend, decode steps and `backward` multiply floats. For
/// 16-bit elements it changes nothing.
struct SplitProducts {
  static constexpr bool splits_numbers = true;
};

}  // namespace jrt
