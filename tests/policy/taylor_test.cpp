// SPDX-License-Identifier: Apache-2.0
#include <jrt/policy/taylor.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <random>
#include <utility>

#include "jrt/detail/cpu/core/expand.hpp"
#include "support/tensor.hpp"

namespace jrt::test {
namespace {

static_assert(StatePacking<DensePacking> && StatePacking<SymmetricPacking>);
static_assert(Taylor2<16>::feature_dim == 153 && Taylor2<16, DensePacking>::feature_dim == 273);
static_assert(Taylor2<24>::feature_dim == 325 && Taylor2<24, DensePacking>::feature_dim == 601);

template <int dim>
void check_rows() {
  CAPTURE(dim);
  using Packing = SymmetricPacking;
  std::map<std::pair<int, int>, int> seen;
  for (int r = 0; r < Packing::rows<dim>; ++r) {
    const TaylorRow row = Packing::row<dim>(r);
    REQUIRE(row.first < dim);
    REQUIRE(row.second < dim);
    ++seen[{std::min(row.first, row.second), std::max(row.first, row.second)}];
  }
  // The constant, every linear feature and every unordered pair exactly once.
  CHECK(seen.size() == static_cast<std::size_t>(Packing::rows<dim>));
  CHECK(seen.count({-1, -1}) == 1);
  for (int i = 0; i < dim; ++i) {
    CHECK(seen.count({-1, i}) == 1);
    for (int j = i; j < dim; ++j) {
      CHECK(seen.count({i, j}) == 1);
    }
  }
}

TEST_CASE("the symmetric packing holds every product once, for odd and even dimensions") {
  check_rows<1>();
  check_rows<2>();
  check_rows<3>();
  check_rows<4>();
  check_rows<5>();
  check_rows<8>();
  check_rows<15>();
  check_rows<16>();
  check_rows<24>();
  check_rows<32>();
  check_rows<64>();
}

TEST_CASE("the dense packing is the authors' order 1 | x | vec(x xT)/sqrt(2d)") {
  const auto x = random_tensor<double>({1, 1, 1, 16}, 3).values;
  std::array<double, 273> features{};
  Taylor2<16, DensePacking>{}.expand_key(x.data(), features.data());
  CHECK(features[0] == 1);
  for (std::size_t i = 0; i < 16; ++i) {
    CHECK(features[1 + i] == doctest::Approx(x[i] / 2).epsilon(1e-15));
    for (std::size_t j = 0; j < 16; ++j) {
      CHECK(features[17 + 16 * i + j] == doctest::Approx(x[i] * x[j] / std::sqrt(32.0)).epsilon(1e-14));
    }
  }
}

/// The CPU backend's expansion in packets against the map's own, and what it leaves around it.
template <class T, int dim>
void check_row_expansion() {
  CAPTURE(dim);
  using Map = Taylor2<dim>;
  using Expansion = detail::cpu::RowExpansion<Map, T>;
  constexpr int stride = detail::cpu::padded_to_lanes<T>(Map::feature_dim);
  constexpr int rows = 3;
  const auto x = random_tensor<T>({1, rows, 1, dim}, 5);
  std::vector<T> input(static_cast<std::size_t>(rows * Expansion::input_stride), poison<T>());
  // One more than allowed, to see that it stays untouched.
  std::vector<T> features(static_cast<std::size_t>(rows * stride + Expansion::feature_overrun + 1), poison<T>());
  for (int r = 0; r < rows; ++r) {
    Expansion::write_input(&x.at(0, r, 0, 0), input.data() + r * Expansion::input_stride);
  }
  for (const bool query : {false, true}) {
    for (int r = 0; r < rows; ++r) {
      T* const row = features.data() + r * stride;
      query ? Expansion::expand_query(Map{}, input.data() + r * Expansion::input_stride, row, 1)
            : Expansion::expand_key(Map{}, input.data() + r * Expansion::input_stride, row, 1);
    }
    for (int r = 0; r < rows; ++r) {
      std::vector<T> expected(Map::feature_dim);
      query ? Map{}.expand_query(&x.at(0, r, 0, 0), expected.data()) : Map{}.expand_key(&x.at(0, r, 0, 0), expected.data());
      const T* const row = features.data() + r * stride;
      CHECK(relative_error(std::vector<T>(row, row + Map::feature_dim), expected) <= (sizeof(T) == 4 ? 1e-6 : 1e-15));
      for (int i = Map::feature_dim; i < stride; ++i) {
        CHECK(row[i] == 0);
      }
    }
    CHECK(std::isnan(features.back()));
  }
}

TEST_CASE_TEMPLATE("the CPU's expansion equals the map's own, for every dimension", T, float, double) {
  check_row_expansion<T, 1>();
  check_row_expansion<T, 2>();
  check_row_expansion<T, 3>();
  check_row_expansion<T, 4>();
  check_row_expansion<T, 5>();
  check_row_expansion<T, 7>();
  check_row_expansion<T, 8>();
  check_row_expansion<T, 9>();
  check_row_expansion<T, 16>();
  check_row_expansion<T, 17>();
  check_row_expansion<T, 24>();
  check_row_expansion<T, 31>();
  check_row_expansion<T, 32>();
  check_row_expansion<T, 60>();
  check_row_expansion<T, 64>();
}

}  // namespace
}  // namespace jrt::test
