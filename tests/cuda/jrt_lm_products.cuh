// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <type_traits>
#include <vector>

#include "jrt_lm/cuda_device.cuh"

/// Random operands of jrt_lm's products on a GPU, and the products in double.
namespace jrt_lm::test {

/// Random numbers that E can hold, in E and in double.
template <class E>
struct Numbers {
  std::vector<E> stored;
  std::vector<double> exact;

  Numbers(std::int64_t count, double scale, unsigned seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<double> normal(0, scale);
    for (std::int64_t i = 0; i < count; ++i) {
      stored.push_back(jrt::convert<E>(normal(generator)));
      exact.push_back(jrt::convert<double>(stored.back()));
    }
  }
  [[nodiscard]] CudaDevice::Array<E> on(CudaDevice& device) const {
    CudaDevice::Array<E> array(device, std::ssize(stored));
    array.upload(stored);
    return array;
  }
};

template <class Out>
double relative_error(const std::vector<Out>& y, const std::vector<double>& expected) {
  REQUIRE(y.size() == expected.size());
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    difference += std::pow(jrt::convert<double>(y[i]) - expected[i], 2);
    norm += std::pow(expected[i], 2);
  }
  return std::sqrt(difference / norm);
}

template <class E>
struct Problem {
  std::int64_t rows, in, out;
  CudaDevice device{ModelOptions{}};
  Numbers<float> residual{rows * in, 3, 1};
  Numbers<float> norm_weight{in, 1, 2};
  Numbers<E> x{rows * in, 1, 3};
  Numbers<E> weight{out * in, 0.1, 4};
  Numbers<float> bias{out, 1, 5};

  Problem(std::int64_t r, std::int64_t i, std::int64_t o) : rows(r), in(i), out(o) {}

  template <class Out>
  Projection<CudaDevice, E, Out> projection(bool with_bias) {
    Projection<CudaDevice, E, Out> result;
    result.out = out;
    result.in = in;
    result.weight = weight.on(device);
    if (with_bias) {
      std::vector<Out> numbers;
      for (const float number : bias.stored) {
        numbers.push_back(jrt::convert<Out>(number));
      }
      result.bias = CudaDevice::Array<Out>(device, out);
      result.bias.upload(numbers);
    }
    return result;
  }

  [[nodiscard]] std::vector<double> product(const std::vector<double>& left, bool with_bias) const {
    std::vector<double> y;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t o = 0; o < out; ++o) {
        double sum = with_bias ? bias.exact[o] : 0;
        for (std::int64_t k = 0; k < in; ++k) {
          sum += left[r * in + k] * weight.exact[o * in + k];
        }
        y.push_back(sum);
      }
    }
    return y;
  }

  [[nodiscard]] std::vector<double> normed(double epsilon) const {
    std::vector<double> y;
    for (std::int64_t r = 0; r < rows; ++r) {
      double squares = 0;
      for (std::int64_t k = 0; k < in; ++k) {
        squares += std::pow(residual.exact[r * in + k], 2);
      }
      for (std::int64_t k = 0; k < in; ++k) {
        y.push_back(residual.exact[r * in + k] * norm_weight.exact[k] / std::sqrt(squares / in + epsilon));
      }
    }
    return y;
  }
};

/// In the last places of E: one rounding of the operand or the result.
template <class E>
constexpr double rounding = std::is_same_v<E, jrt::BFloat16> ? 4e-3 : 5e-4;

}  // namespace jrt_lm::test
