// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace jrt_lm {

/// y (rows, out) += x (rows, in) Wᵀ, W (out, in) contiguous, in the calling thread. Rows of x and y are `x_columns` and
/// `y_columns` apart. Eigen's product takes longer to compile than a whole model: eigen_product.cpp has it for float, in
/// which 16-bit numbers are multiplied too, and double.
template <class T>
void add_product(const T* x, std::int64_t x_columns, std::int64_t rows, std::int64_t in, const T* weight, std::int64_t out,
                 T* y, std::int64_t y_columns);

extern template void add_product(const float*, std::int64_t, std::int64_t, std::int64_t, const float*, std::int64_t, float*,
                                 std::int64_t);
extern template void add_product(const double*, std::int64_t, std::int64_t, std::int64_t, const double*, std::int64_t,
                                 double*, std::int64_t);

}  // namespace jrt_lm
