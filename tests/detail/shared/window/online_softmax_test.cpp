// SPDX-License-Identifier: Apache-2.0
#include <jrt/detail/shared/window/online_softmax.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <vector>

namespace jrt::detail {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// e^(s − m) with a finite maximum of no scores, as groups of lanes have it.
struct FiniteExponential {
  static constexpr double lowest = -std::numeric_limits<double>::max() / 4;
  static double shift(double maximum) { return maximum; }
  static double of(double score, double by) { return std::exp(score - by); }
};

/// e^(0.3 (s − m)) as a power of two.
struct ScaledExponential {
  static constexpr double lowest = -infinity;
  double scale = 0.3 * 1.4426950408889634;

  [[nodiscard]] double shift(double maximum) const { return maximum == lowest ? 0 : maximum * scale; }
  [[nodiscard]] double of(double score, double by) const { return std::exp2(score * scale - by); }
};

template <class Exponential>
constexpr double scale_of = 1;
template <>
constexpr double scale_of<ScaledExponential> = 0.3;

struct Row {
  std::vector<double> scores;
  std::vector<double> values;

  [[nodiscard]] std::size_t size() const { return scores.size(); }
};

Row random_row(unsigned seed, std::size_t size, double spread) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<double> score(-spread, spread);
  std::uniform_real_distribution<double> value(1, 2);
  Row row;
  for (std::size_t i = 0; i < size; ++i) {
    row.scores.push_back(score(generator));
    row.values.push_back(value(generator));
  }
  return row;
}

/// The softmax's average of the values as it is defined, all scores at once.
double plain_output(const Row& row, double scale = 1) {
  const double most = *std::max_element(row.scores.begin(), row.scores.end());
  double denominator = 0;
  double sum = 0;
  for (std::size_t i = 0; i < row.size(); ++i) {
    const double weight = std::exp(scale * (row.scores[i] - most));
    denominator += weight;
    sum += weight * row.values[i];
  }
  return sum / denominator;
}

/// An `OnlineSoftmax` and its accumulator.
template <class T, class Exponential>
struct Part {
  OnlineSoftmax<T, Exponential> softmax;
  T accumulator = 0;

  void add_block(const Row& row, std::size_t begin, std::size_t end) {
    T most = softmax.maximum;
    for (std::size_t i = begin; i < end; ++i) {
      most = std::max(most, static_cast<T>(row.scores[i]));
    }
    accumulator *= softmax.absorb(most);
    for (std::size_t i = begin; i < end; ++i) {
      const T weight = softmax.weight(static_cast<T>(row.scores[i]));
      softmax.denominator += weight;
      accumulator += weight * static_cast<T>(row.values[i]);
    }
  }
  void merge(const Part& other) {
    accumulator *= softmax.absorb(std::max(softmax.maximum, other.softmax.maximum));
    accumulator += softmax.merge(other.softmax) * other.accumulator;
  }
  [[nodiscard]] double output() const {
    CHECK(static_cast<double>(softmax.finish() * accumulator) ==
          doctest::Approx(static_cast<double>(softmax.finish(accumulator))).epsilon(1e-6));
    return static_cast<double>(softmax.finish(accumulator));
  }
};

/// Calls `function(part)` with the parts of a row cut in every way: bit i of the cuts is one behind score i.
template <class T, class Exponential, class Function>
void for_all_cuts(const Row& row, const Function& function) {
  for (unsigned cuts = 0; cuts < 1U << (row.size() - 1); ++cuts) {
    std::vector<Part<T, Exponential>> parts;
    Part<T, Exponential> whole;
    std::size_t begin = 0;
    for (std::size_t end = 1; end <= row.size(); ++end) {
      if (end == row.size() || (cuts >> (end - 1) & 1U) != 0) {
        whole.add_block(row, begin, end);
        parts.emplace_back().add_block(row, begin, end);
        begin = end;
      }
    }
    CAPTURE(cuts);
    function(whole, parts);
  }
}

template <class T, class Exponential>
void check_all_cuts(const Row& row, double tolerance) {
  const double expected = plain_output(row, scale_of<Exponential>);
  for_all_cuts<T, Exponential>(row, [&](const Part<T, Exponential>& whole, std::vector<Part<T, Exponential>> parts) {
    REQUIRE(whole.output() == doctest::Approx(expected).epsilon(tolerance));
    Part<T, Exponential> forward;
    for (const auto& part : parts) {
      forward.merge(part);
    }
    REQUIRE(forward.output() == doctest::Approx(expected).epsilon(tolerance));
    Part<T, Exponential> backward;
    std::reverse(parts.begin(), parts.end());
    for (const auto& part : parts) {
      backward.merge(part);
    }
    REQUIRE(backward.softmax.maximum == forward.softmax.maximum);
    REQUIRE(backward.output() == doctest::Approx(expected).epsilon(tolerance));
  });
}

TEST_CASE("a row in blocks, cut in every way, or merged from parts in either order, is the softmax") {
  for (unsigned seed = 0; seed < 8; ++seed) {
    const Row row = random_row(seed, 9, seed % 2 == 0 ? 3 : 50);
    check_all_cuts<double, NaturalExponential<double>>(row, 1e-13);
    check_all_cuts<double, FiniteExponential>(row, 1e-13);
    check_all_cuts<double, ScaledExponential>(row, 1e-13);
    check_all_cuts<float, NaturalExponential<float>>(row, 2e-6);
  }
}

TEST_CASE("scores of minus infinity have no weight, wherever blocks are cut") {
  for (unsigned hidden = 1; hidden < (1U << 7) - 1; ++hidden) {  // all but the row without a finite score
    Row row = random_row(hidden, 7, 5);
    for (std::size_t i = 0; i < row.size(); ++i) {
      if ((hidden >> i & 1U) != 0) {
        row.scores[i] = -infinity;
      }
    }
    CAPTURE(hidden);
    check_all_cuts<double, NaturalExponential<double>>(row, 1e-13);
    check_all_cuts<double, FiniteExponential>(row, 1e-13);
    check_all_cuts<double, ScaledExponential>(row, 1e-13);
  }
}

TEST_CASE("scores whose exponentials no number could hold") {
  Row row = random_row(1, 8, 1);
  for (std::size_t i = 0; i < row.size(); ++i) {
    row.scores[i] += i % 2 == 0 ? 1e4 : -1e4;
  }
  check_all_cuts<double, NaturalExponential<double>>(row, 1e-12);
}

TEST_CASE_TEMPLATE("no scores, and such that are all minus infinity", Exponential, NaturalExponential<double>,
                   FiniteExponential, ScaledExponential) {
  const Row row = random_row(2, 5, 4);
  const Row hidden{{-infinity, -infinity}, {1, 2}};
  Part<double, Exponential> none;
  CHECK(none.softmax.maximum == Exponential::lowest);
  CHECK(none.softmax.denominator == 0);
  CHECK(none.softmax.finish() == infinity);
  none.add_block(hidden, 0, 2);
  none.merge({});
  CHECK(none.softmax.maximum == Exponential::lowest);
  CHECK(none.softmax.denominator == 0);
  CHECK(none.accumulator == 0);

  Part<double, Exponential> part;
  part.add_block(row, 0, row.size());
  Part<double, Exponential> after = part;
  after.merge(none);
  Part<double, Exponential> before = none;
  before.merge(part);
  for (const auto& merged : {after, before}) {
    CHECK(merged.softmax.maximum == part.softmax.maximum);
    CHECK(merged.softmax.denominator == part.softmax.denominator);
    CHECK(merged.accumulator == part.accumulator);
  }
}

}  // namespace
}  // namespace jrt::detail
