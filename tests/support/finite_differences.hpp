// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

namespace jrt::test {

/// Σ a·b.
inline double sum_of_products(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    sum += a[i] * b[i];
  }
  return sum;
}

/// Central differences of `loss()` in every number of `inputs`, which it depends on.
template <class LossOf>
std::vector<double> central_differences(std::vector<double>& inputs, const LossOf& loss) {
  constexpr double step = 1e-5;
  std::vector<double> result;
  for (double& input : inputs) {
    const double value = input;
    input = value + step;
    const double above = loss();
    input = value - step;
    const double below = loss();
    input = value;
    result.push_back((above - below) / (2 * step));
  }
  return result;
}

}  // namespace jrt::test
