// SPDX-License-Identifier: Apache-2.0
// Matrix products of 16-bit numbers on the CPU against sums in double.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <jrt/numeric.hpp>
#include <random>
#include <type_traits>
#include <vector>

#include "jrt_lm/cpu_device.hpp"

namespace jrt_lm::test {
namespace {

template <class T>
std::vector<T> random_numbers(std::int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<T> numbers;
  for (std::int64_t i = 0; i < count; ++i) {
    numbers.push_back(jrt::convert<T>(uniform(generator)));
  }
  return numbers;
}

struct Sizes {
  std::int64_t rows, in, out;
};

/// y of `multiply` and then `multiply_add`; rows of x and y have numbers behind them that are not the product's.
template <class E, class Out>
std::vector<Out> product(const Sizes& s, bool has_bias, int threads) {
  ModelOptions options;
  options.threads = threads;
  CpuDevice device(options);
  Projection<CpuDevice, E, Out> by;
  by.out = s.out;
  by.in = s.in;
  by.weight = CpuDevice::Array<E>(device, s.out * s.in);
  by.weight.upload(random_numbers<E>(s.out * s.in, 1));
  if (has_bias) {
    by.bias = CpuDevice::Array<Out>(device, s.out);
    by.bias.upload(random_numbers<Out>(s.out, 2));
  }
  const auto x = random_numbers<E>(s.rows * (s.in + 3), 3);
  std::vector<Out> y(static_cast<std::size_t>(s.rows * (s.out + 5)), jrt::convert<Out>(7.0F));
  device.multiply(by, x.data(), s.in + 3, s.rows, y.data(), s.out + 5);
  device.multiply_add(by, x.data(), s.in + 3, s.rows, y.data(), s.out + 5);
  return y;
}

/// The product is that of doubles but for `bound`, relative to 1 and the number; nothing behind rows is touched; and it is
/// the same for three threads.
template <class E, class Out>
void check(const Sizes& s, bool has_bias, double bound) {
  const auto x = random_numbers<E>(s.rows * (s.in + 3), 3);
  const auto weight = random_numbers<E>(s.out * s.in, 1);
  const auto bias = random_numbers<Out>(s.out, 2);
  const auto y = product<E, Out>(s, has_bias, 1);
  double worst = 0;
  for (std::int64_t t = 0; t < s.rows; ++t) {
    for (std::int64_t o = 0; o < s.out + 5; ++o) {
      const auto actual = static_cast<double>(jrt::convert<float>(y[static_cast<std::size_t>(t * (s.out + 5) + o)]));
      double expected = 7;  // as it was
      if (o < s.out) {
        expected = has_bias ? static_cast<double>(jrt::convert<float>(bias[static_cast<std::size_t>(o)])) : 0;
        for (std::int64_t i = 0; i < s.in; ++i) {
          expected += static_cast<double>(jrt::convert<float>(x[static_cast<std::size_t>(t * (s.in + 3) + i)])) *
                      static_cast<double>(jrt::convert<float>(weight[static_cast<std::size_t>(o * s.in + i)]));
        }
        expected *= 2;
      }
      worst = std::max(worst, std::abs(actual - expected) / (1 + std::abs(expected)));
    }
  }
  CAPTURE(s.rows);
  CAPTURE(s.in);
  CAPTURE(s.out);
  CHECK(worst <= bound);
  const auto threaded = product<E, Out>(s, has_bias, 3);
  CHECK(threaded == y);  // bit by bit
}

TEST_CASE_TEMPLATE("products of 16-bit numbers, for any number of threads", E, jrt::BFloat16, jrt::Half) {
  // Rounded twice, to nearest, in formats with 8 and 11 bits.
  const double rounding = std::is_same_v<E, jrt::BFloat16> ? 0x1p-7 : 0x1p-10;
  // One row and few, the most of those and one more; a panel that is not whole; many rows, in blocks and in parts; panels
  // of the smallest size.
  for (const Sizes& sizes : {Sizes{1, 64, 5000},
                             {3, 40, 150},
                             {7, 131, 9},
                             {16, 2752, 70},
                             {17, 64, 70},
                             {300, 40, 150},
                             {2100, 17, 9},
                             {2, 5000, 70}}) {
    for (const bool has_bias : {false, true}) {
      check<E, E>(sizes, has_bias, rounding);
      check<E, float>(sizes, has_bias, 1e-4);
    }
  }
}

}  // namespace
}  // namespace jrt_lm::test
