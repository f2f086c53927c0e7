// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

#include "jrt/numeric.hpp"

/// Functions shared by the oracles of attention.
namespace jrt::reference {

/// Numerator row and denominator of one query over the pairs that it sees, in double.
struct Sums {
  std::vector<double> numerator;
  double denominator = 0;

  /// Adds one pair.
  template <Element E>
  void add(double weight, const E* value) {
    denominator += weight;
    for (std::size_t c = 0; c < numerator.size(); ++c) {
      numerator[c] += weight * convert<double>(value[c]);
    }
  }
};

/// A row of a tensor or state, in double.
template <Element E>
std::vector<double> in_double(const E* row, int count) {
  std::vector<double> numbers(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = convert<double>(row[i]);
  }
  return numbers;
}

/// to += factor · from.
inline void add_scaled(std::vector<double>& to, double factor, const std::vector<double>& from) {
  for (std::size_t c = 0; c < to.size(); ++c) {
    to[c] += factor * from[c];
  }
}

/// Inner product.
inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    sum += a[i] * b[i];
  }
  return sum;
}

}  // namespace jrt::reference
