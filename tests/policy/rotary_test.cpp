// SPDX-License-Identifier: Apache-2.0
#include <jrt/policy/rotary.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "jrt/detail/cpu/window/block.hpp"

namespace jrt::test {
namespace {

static_assert(Rotary<NoRotary> && Rotary<RotaryHalves<64>> && !Rotary<int>);
static_assert(!NoRotary::rotates && RotaryHalves<64>::rotates && RotaryHalves<64>::half_dim == 32);

/// From small to 2⁴⁰, around powers of two, and random ones.
std::vector<std::int64_t> positions() {
  std::vector<std::int64_t> list{0, 1, 2, 3, 1000, 1'000'000, 123'456'789};
  for (int bit = 2; bit <= 40; ++bit) {
    const std::int64_t power = std::int64_t{1} << bit;
    list.insert(list.end(), {power - 1, power, power + 1});
  }
  std::mt19937_64 generator(3);
  for (int i = 0; i < 100; ++i) {
    list.push_back(std::uniform_int_distribution<std::int64_t>(0, std::int64_t{1} << 40)(generator));
  }
  return list;
}

/// Largest distance of cosine and sine from those of position · radians in long double. Its 64 bits leave an error in the
/// angle of position · radians · 2⁻⁶⁴ at least; the policy's own is position · 2⁻⁶⁴ turns.
template <class T, int d>
double worst_error(const RotaryHalves<d>& rotary, long double base, std::int64_t most) {
  double worst = 0;
  for (const std::int64_t position : positions()) {
    if (position > most) {
      continue;
    }
    for (int i = 0; i < d / 2; ++i) {
      const long double frequency = std::pow(base, -2.0L * static_cast<long double>(i) / d);
      const long double angle = static_cast<long double>(position) * frequency;
      const Rotation<T> rotation = rotary.template rotation<T>(position, i);
      worst = std::max(worst, static_cast<double>(std::fabs(static_cast<long double>(rotation.cosine) - std::cos(angle))));
      worst = std::max(worst, static_cast<double>(std::fabs(static_cast<long double>(rotation.sine) - std::sin(angle))));
    }
  }
  return worst;
}

constexpr std::int64_t million = 1'000'000;
constexpr std::int64_t farthest = std::int64_t{1} << 40;

TEST_CASE("angles in double") {
  const RotaryHalves<64> rotary;
  CHECK(worst_error<double>(rotary, 10000, million) <= 1e-12);
  // 2⁴⁰ · 2⁻⁶⁴ turns, and as much for the long double.
  CHECK(worst_error<double>(rotary, 10000, farthest) <= 1e-6);
  CHECK(worst_error<double>(RotaryHalves<2>(), 10000, farthest) <= 1e-6);
}

TEST_CASE("angles in float do not lose bits with the position") {
  const RotaryHalves<64> rotary;
  CHECK(worst_error<float>(rotary, 10000, 1000) <= 3e-7);
  CHECK(worst_error<float>(rotary, 10000, million) <= 3e-7);
  CHECK(worst_error<float>(rotary, 10000, farthest) <= 1e-6);
}

TEST_CASE("the base is an argument") {
  CHECK(worst_error<double>(RotaryHalves<16>(500'000), 500'000, million) <= 1e-12);
  CHECK(worst_error<float>(RotaryHalves<16>(500'000), 500'000, million) <= 3e-7);
}

TEST_CASE("set_frequency replaces the angle of one pair, whatever its size and sign") {
  RotaryHalves<8> rotary;
  const RotaryHalves<8> untouched;
  for (const long double radians : {0.0L, 0.25L, 3.0L, -0.25L, 7.5L, -100.0L}) {
    CAPTURE(static_cast<double>(radians));
    rotary.set_frequency(2, radians);
    for (const std::int64_t position : {0, 1, 17, 4096}) {
      CAPTURE(position);
      const long double angle = static_cast<long double>(position) * radians;
      const auto rotation = rotary.rotation<double>(position, 2);
      CHECK(std::fabs(rotation.cosine - static_cast<double>(std::cos(angle))) <= 1e-12);
      CHECK(std::fabs(rotation.sine - static_cast<double>(std::sin(angle))) <= 1e-12);
      for (const int i : {0, 1, 3}) {
        CHECK(rotary.rotation<double>(position, i).cosine == untouched.rotation<double>(position, i).cosine);
        CHECK(rotary.rotation<double>(position, i).sine == untouched.rotation<double>(position, i).sine);
      }
    }
  }
}

TEST_CASE_TEMPLATE("rotations are orthogonal", T, float, double) {
  const RotaryHalves<64> rotary;
  const double bound = 4 * static_cast<double>(std::numeric_limits<T>::epsilon());
  for (const std::int64_t position : positions()) {
    for (int i = 0; i < 32; ++i) {
      const auto rotation = rotary.rotation<T>(position, i);
      const double cosine = static_cast<double>(rotation.cosine);
      const double sine = static_cast<double>(rotation.sine);
      REQUIRE(std::fabs(cosine * cosine + sine * sine - 1) <= bound);
    }
  }
}

TEST_CASE("position 0 turns nothing, to the bit") {
  const RotaryHalves<64> rotary;
  for (int i = 0; i < 32; ++i) {
    CHECK(rotary.rotation<double>(0, i).cosine == 1);
    CHECK(rotary.rotation<double>(0, i).sine == 0);
  }
}

TEST_CASE("products of rotated vectors depend on the distance of their positions only") {
  const RotaryHalves<16> rotary;
  std::mt19937 generator(5);
  std::normal_distribution<double> normal;
  std::vector<double> query(16);
  std::vector<double> key(16);
  for (int c = 0; c < 16; ++c) {
    query[static_cast<std::size_t>(c)] = normal(generator);
    key[static_cast<std::size_t>(c)] = normal(generator);
  }
  const auto product = [&](std::int64_t i, std::int64_t j) {
    auto a = query;
    auto b = key;
    detail::cpu::rotate(rotary, i, a.data());
    detail::cpu::rotate(rotary, j, b.data());
    double sum = 0;
    for (std::size_t c = 0; c < 16; ++c) {
      sum += a[c] * b[c];
    }
    return sum;
  };
  for (const std::int64_t distance : {0, 1, 7, 128}) {
    const double expected = product(distance, 0);
    for (const std::int64_t first : {1, 100, 1'000'000}) {
      CHECK(std::fabs(product(first + distance, first) - expected) <= 1e-12);
    }
    CHECK(std::fabs(product(farthest + distance, farthest) - expected) <= 1e-12);
  }
}

}  // namespace
}  // namespace jrt::test
