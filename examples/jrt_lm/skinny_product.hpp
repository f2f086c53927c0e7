// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <jrt/numeric.hpp>

namespace jrt_lm {

/// Most rows for which `multiply_skinny` is faster than a product that widens the weights in memory first.
inline constexpr std::int64_t skinny_rows = 16;

/// sums (rows, out) = x (rows, in) Wᵀ in the calling thread, W (out, in) contiguous; rows of x and sums are `x_columns` and
/// `sums_columns` apart. For the few rows of a decode step, in which reading W is all that counts: weights are widened in
/// registers and read from memory once. A sum depends on its rows of x and W and on the number of rows alone.
void multiply_skinny(const jrt::BFloat16* x, std::int64_t x_columns, std::int64_t rows, std::int64_t in,
                     const jrt::BFloat16* weight, std::int64_t out, float* sums, std::int64_t sums_columns);

}  // namespace jrt_lm
