// SPDX-License-Identifier: Apache-2.0
// jrt_lm's matrix products on a GPU, those for few rows and those of cuBLASLt, with norms, additions and gates, against
// sums in double over the same rounded numbers.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "cuda/jrt_lm_products.cuh"

namespace jrt_lm::test {
namespace {

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
