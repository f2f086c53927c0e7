// SPDX-License-Identifier: Apache-2.0
// jrt_lm's matrix products on a GPU, those for few rows and those of cuBLASLt, with norms, additions and gates, against
// sums in double over the same rounded numbers.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "jrt_lm/cuda_device.cuh"

namespace jrt_lm::test {
namespace {

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

template <class E>
void check_products(std::int64_t rows, std::int64_t in, std::int64_t out) {
  CAPTURE(rows);
  CAPTURE(in);
  CAPTURE(out);
  Problem<E> problem(rows, in, out);
  CudaDevice& device = problem.device;
  const auto residual = problem.residual.on(device);
  const auto norm_weight = problem.norm_weight.on(device);
  const auto x = problem.x.on(device);
  constexpr double epsilon = 0.5;  // large enough to be missed
  const Norm<float> norm{norm_weight.data(), epsilon};
  CudaDevice::Array<E> normed(device, rows * in);
  for (const bool with_bias : {false, true}) {
    // Into the residual stream: only float sums differ from double ones.
    const auto outer = problem.template projection<float>(with_bias);
    Numbers<float> before(rows * out, 2, 6);
    auto y = before.on(device);
    device.multiply_add(outer, x.data(), in, rows, y.data(), out);
    auto expected = problem.product(problem.x.exact, with_bias);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      expected[i] += before.exact[i];
    }
    CHECK(relative_error(y.download(rows * out), expected) <= 2e-6);
    // From the residual stream, normalised, to logits.
    device.multiply_normed(outer, norm, residual.data(), rows, normed.data(), y.data(), out);
    CHECK(relative_error(y.download(rows * out), problem.product(problem.normed(epsilon), with_bias)) <= rounding<E>);
    // The same to 16 bits, and gated.
    const auto inner = problem.template projection<E>(with_bias);
    CudaDevice::Array<E> z(device, rows * out);
    device.multiply_normed(inner, norm, residual.data(), rows, normed.data(), z.data(), out);
    const auto product = problem.product(problem.normed(epsilon), with_bias);
    CHECK(relative_error(z.download(rows * out), product) <= 2 * rounding<E>);
    const std::int64_t columns = device.multiply_normed_gated(inner, norm, residual.data(), rows, normed.data(), z.data());
    const auto all = z.download(rows * out);
    std::vector<E> gated;
    std::vector<double> expected_gated;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < out / 2; ++c) {
        gated.push_back(all[r * columns + c]);
        const double gate = product[r * out + out / 2 + c];
        expected_gated.push_back(product[r * out + c] * gate / (1 + std::exp(-gate)));
      }
    }
    CHECK(relative_error(gated, expected_gated) <= 4 * rounding<E>);
  }
}

TEST_CASE_TEMPLATE("products of few and of many rows", E, jrt::BFloat16, jrt::Half) {
  for (const std::int64_t rows : {1, 2, 7, 8, 9, 15, 16, 17, 40}) {
    check_products<E>(rows, 64, 48);
  }
  // A chunk for some of a block's warps only, an odd number of chunks, and dimensions that the kernel for few rows refuses.
  check_products<E>(3, 32, 16);
  check_products<E>(5, 352, 80);
  check_products<E>(4, 40, 48);
  check_products<E>(16, 1792, 336);
}

template <int d>
void check_rotated(std::int64_t rows, std::int64_t in, std::int64_t heads, std::int64_t turned) {
  CAPTURE(rows);
  CAPTURE(d);
  using E = jrt::BFloat16;
  Problem<E> problem(rows, in, heads * d);
  CudaDevice& device = problem.device;
  const auto by = problem.projection<E>(true);
  const auto residual = problem.residual.on(device);
  const auto norm_weight = problem.norm_weight.on(device);
  const Norm<float> norm{norm_weight.data(), 1e-5};
  const jrt::RotaryHalves<d> rotary(1e4);
  std::vector<std::int32_t> numbers;
  for (std::int64_t row = 0; row < rows; ++row) {
    numbers.push_back(static_cast<std::int32_t>(1000 * row + 7));
  }
  CudaDevice::Array<std::int32_t> positions(device, rows);
  positions.upload(numbers);
  CudaDevice::Array<E> normed(device, rows * in);
  CudaDevice::Array<E> together(device, rows * heads * d);
  CudaDevice::Array<E> apart(device, rows * heads * d);
  device.multiply_normed_rotated(by, norm, residual.data(), rows, normed.data(), together.data(), rotary, positions.data(),
                                 turned);
  device.multiply_normed(by, norm, residual.data(), rows, normed.data(), apart.data(), heads * d);
  device.rotate(rotary, positions.data(), rows, apart.data(), heads * d, turned);
  std::vector<double> expected;
  for (const E number : apart.download(rows * heads * d)) {
    expected.push_back(jrt::convert<double>(number));
  }
  CHECK(relative_error(together.download(rows * heads * d), expected) <= 1e-3);
}

TEST_CASE("the rotation behind a product is the rotation after it, for any rows, with heads that are not turned") {
  for (const std::int64_t rows : {1, 3, 8, 9, 16, 20}) {
    check_rotated<16>(rows, 64, 8, 6);
    check_rotated<64>(rows, 352, 6, 4);
    check_rotated<112>(rows, 128, 3, 2);
  }
}

TEST_CASE("a row gives bitwise the same whatever else is in the batch") {
  using E = jrt::BFloat16;
  Problem<E> problem(16, 512, 64);
  CudaDevice& device = problem.device;
  const auto by = problem.projection<float>(true);
  const auto x = problem.x.on(device);
  CudaDevice::Array<float> all(device, 16 * 64);
  device.multiply_add(by, x.data(), 512, 16, all.data(), 64);
  const auto expected = all.download(16 * 64);
  for (std::int64_t row = 0; row < 16; ++row) {
    CudaDevice::Array<float> one(device, 64);
    device.multiply_add(by, x.data() + row * 512, 512, 1, one.data(), 64);
    CHECK(one.download(64) == std::vector<float>(expected.begin() + row * 64, expected.begin() + (row + 1) * 64));
  }
}

}  // namespace
}  // namespace jrt_lm::test
