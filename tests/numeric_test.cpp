// SPDX-License-Identifier: Apache-2.0
#include <jrt/numeric.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <random>

namespace jrt {
namespace {

/// The value of a 16-bit format from its fields, in double.
double value_of(std::uint16_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits;
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa == 0 ? sign * INFINITY : NAN;
  }
  const double fraction = std::ldexp(mantissa, -mantissa_bits);
  return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias) : sign * std::ldexp(1 + fraction, exponent - bias);
}

template <class T>
T from_bits(std::uint16_t bits) {
  T value;
  value.bits = bits;
  return value;
}

template <class T, int exponent_bits>
void check_all_values() {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const T value = from_bits<T>(static_cast<std::uint16_t>(bits));
    const double expected = value_of(static_cast<std::uint16_t>(bits), exponent_bits);
    const auto converted = static_cast<float>(value);
    if (std::isnan(expected)) {
      REQUIRE(std::isnan(converted));
      REQUIRE(std::isnan(static_cast<float>(T(converted))));
    } else {
      REQUIRE(static_cast<double>(converted) == expected);
      REQUIRE(T(converted).bits == bits);
    }
  }
}

TEST_CASE("every half converts to float and back") {
  check_all_values<Half, 5>();
}
TEST_CASE("every bfloat16 converts to float and back") {
  check_all_values<BFloat16, 8>();
}

/// Rounding to nearest, ties to even: no neighbour is closer, and of two equally close ones the even is taken.
template <class T, int exponent_bits>
void check_rounding(float value) {
  const std::uint16_t bits = T(value).bits;
  const double rounded = value_of(bits, exponent_bits);
  if (std::isinf(rounded)) {
    return;  // overflow has its own test
  }
  const double error = std::abs(rounded - static_cast<double>(value));
  for (const int step : {-1, 1}) {
    const auto neighbour = static_cast<std::uint16_t>(bits + step);
    if ((neighbour & 0x8000) != (bits & 0x8000)) {
      continue;
    }
    const double other = std::abs(value_of(neighbour, exponent_bits) - static_cast<double>(value));
    REQUIRE_FALSE(other < error);
    if (other == error) {
      REQUIRE((bits & 1) == 0);
    }
  }
}

TEST_CASE("float rounds to the nearest half and bfloat16, ties to even") {
  std::mt19937 generator(7);
  std::uniform_int_distribution<std::uint32_t> any;
  for (int i = 0; i < 300'000; ++i) {
    const auto value = std::bit_cast<float>(any(generator));
    if (std::isfinite(value)) {
      check_rounding<Half, 5>(value);
      check_rounding<BFloat16, 8>(value);
    }
    // Most random floats are far outside of half's range, so draw from it as well, halfway cases included.
    const float inside = std::ldexp(static_cast<float>(any(generator) >> 20), static_cast<int>(any(generator) % 44) - 36);
    check_rounding<Half, 5>(inside);
    check_rounding<Half, 5>(-inside);
  }
}

TEST_CASE("overflow and special values") {
  CHECK(Half(65504.0F).bits == 0x7bff);
  CHECK(Half(65519.9F).bits == 0x7bff);
  CHECK(Half(65520.0F).bits == 0x7c00);
  CHECK(Half(-1e30F).bits == 0xfc00);
  CHECK(Half(0x1p-25F).bits == 0);  // a tie between 0 and the smallest subnormal
  CHECK(Half(0x1.8p-25F).bits == 1);
  CHECK(Half(-0.0F).bits == 0x8000);
  CHECK(BFloat16(3.4e38F).bits == 0x7f80);  // rounds up to infinity
  CHECK(std::isnan(static_cast<float>(Half(NAN))));
  CHECK(std::isnan(static_cast<float>(BFloat16(NAN))));
  CHECK(std::isinf(static_cast<float>(Half(INFINITY))));
}

TEST_CASE("conversion goes through float where one side has 16 bits") {
  CHECK(convert<double>(Half(1.5F)) == 1.5);
  CHECK(convert<Half>(0.1).bits == Half(0.1F).bits);
  CHECK(convert<double>(0.1) == 0.1);
  static_assert(std::is_same_v<ComputeType<Half>, float> && std::is_same_v<ComputeType<double>, double>);
  static_assert(Half(1.0F).bits == 0x3c00, "conversions are usable at compile time");
}

}  // namespace
}  // namespace jrt
