// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/eigen_product.hpp"

#include <Eigen/Core>

namespace jrt_lm {

template <class T>
void add_product(const T* x, std::int64_t x_columns, std::int64_t rows, std::int64_t in, const T* weight, std::int64_t out,
                 T* y, std::int64_t y_columns) {
  using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Stride = Eigen::OuterStride<>;
  const Eigen::Map<const Matrix, 0, Stride> left(x, rows, in, Stride(x_columns));
  const Eigen::Map<const Matrix, 0, Stride> right(weight, out, in, Stride(in));
  Eigen::Map<Matrix, 0, Stride>(y, rows, out, Stride(y_columns)).noalias() += left * right.transpose();
}

template void add_product(const float*, std::int64_t, std::int64_t, std::int64_t, const float*, std::int64_t, float*,
                          std::int64_t);
template void add_product(const double*, std::int64_t, std::int64_t, std::int64_t, const double*, std::int64_t, double*,
                          std::int64_t);

}  // namespace jrt_lm
