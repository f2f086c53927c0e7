// SPDX-License-Identifier: Apache-2.0
#include <jrt/detail/plan/hopper_packing.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <set>
#include <vector>

namespace jrt::detail {
namespace {

/// Calls `function(n, m, w, h, u)` for every row n = 64m + 16w + 8h + u of the accumulators.
template <class Packing, class Function>
void for_rows(const Function& function) {
  for (int n = 0; n < 64 * Packing::row_tiles; ++n) {
    CAPTURE(n);
    function(n, n / 64, n / 16 % 4, n / 8 % 2, n % 8);
  }
}

TEST_CASE_TEMPLATE("every row of the format is in exactly one place, which holds what the format says", Packing,
                   HopperPacking, HopperPacking8) {
  using Map = Taylor2<Packing::input_dim, SymmetricPacking>;
  std::set<int> seen;
  for_rows<Packing>([&](int n, int m, int w, int h, int u) {
    const TaylorRow row = Packing::row(m, w, h, u);
    const int r = Packing::format_row(row);
    REQUIRE((r < 0) == (row == Packing::nothing()));
    if (r < 0) {
      return;
    }
    REQUIRE(n < Packing::rows);
    REQUIRE(r < Packing::format_rows);
    REQUIRE(row.first < Packing::input_dim);
    REQUIRE(row.second < Packing::input_dim);
    REQUIRE(seen.insert(r).second);
    const TaylorRow same = SymmetricPacking::template row<Packing::input_dim>(r);
    const bool holds_same = row == same || (row.first == same.second && row.second == same.first);
    REQUIRE(holds_same);
  });
  CHECK(seen.size() == Map::feature_dim);
}

TEST_CASE_TEMPLATE("format_row finds any pair, in either order", Packing, HopperPacking, HopperPacking8) {
  for (int r = 0; r < Packing::format_rows; ++r) {
    const TaylorRow row = SymmetricPacking::template row<Packing::input_dim>(r);
    REQUIRE(Packing::format_row(row) == r);
    if (row.second >= 0) {
      REQUIRE(Packing::format_row({row.second, row.first}) == r);
    }
  }
}

TEST_CASE("a warp makes its products from one pair of halves and that pair shifted by one number") {
  using Packing = HopperPacking;
  for_rows<Packing>([&](int, int m, int w, int h, int u) {
    const TaylorRow row = Packing::row(m, w, h, u);
    if (row.first >= 0) {
      REQUIRE(row.first % 8 == u);
    }
    if (row.second >= 0) {
      const int shift = w == 0 ? 4 : w;
      const bool is_shifted = row.second % 8 == (u + shift) % 8;
      const bool in_place = w == 0 && row.second % 8 == u;
      const bool either = is_shifted || in_place;
      REQUIRE(either);
    }
  });
}

/// The product of inputs that a row names.
std::int64_t product(const std::vector<std::int64_t>& x, const TaylorRow& row) {
  const auto input = [&](int i) { return i < 0 ? std::int64_t{1} : x[static_cast<std::size_t>(i)]; };
  return input(row.first) * input(row.second);
}

TEST_CASE("d = 8: a warp makes its products from one half and that half shifted by two numbers") {
  using Packing = HopperPacking8;
  for_rows<Packing>([&](int, int m, int w, int h, int u) {
    const TaylorRow row = Packing::row(m, w, h, u);
    if (row.first >= 0) {
      REQUIRE(row.first == u);
    }
    if (row.second >= 0) {
      const int shift = h == 0 ? w : (w == 0 ? 4 : 3);
      REQUIRE(row.second == (u + shift) % 8);
    }
  });
}

TEST_CASE("keys without factors and queries with powers of two give the Taylor kernel, exactly") {
  using Packing = HopperPacking;
  for (std::int64_t seed = 0; seed < 20; ++seed) {
    std::vector<std::int64_t> query;
    std::vector<std::int64_t> key;
    std::int64_t dot = 0;
    for (std::int64_t i = 0; i < Packing::input_dim; ++i) {
      query.push_back((i * 7 + seed * 5) % 11 - 5);
      key.push_back((i * 3 + seed * 13) % 9 - 4);
      dot += query.back() * key.back();
    }
    std::int64_t sum = 0;  // times 32
    for_rows<Packing>([&](int, int m, int w, int h, int u) {
      const TaylorRow row = Packing::row(m, w, h, u);
      if (row == Packing::nothing()) {
        return;
      }
      const std::int64_t factor = row.first < 0 ? 32 : (row.second < 0 ? 8 : (row.first == row.second ? 1 : 2));
      sum += factor * product(query, row) * product(key, row);
    });
    REQUIRE(sum == 32 + 8 * dot + dot * dot);  // 32 (1 + s + s²/2), s = dot/4
  }
}

TEST_CASE("d = 8: keys without factors give the Taylor kernel") {
  using Packing = HopperPacking8;
  for (std::int64_t seed = 0; seed < 20; ++seed) {
    std::vector<std::int64_t> query;
    std::vector<std::int64_t> key;
    double dot = 0;
    for (std::int64_t i = 0; i < Packing::input_dim; ++i) {
      query.push_back((i * 7 + seed * 5) % 11 - 5);
      key.push_back((i * 3 + seed * 13) % 9 - 4);
      dot += static_cast<double>(query.back() * key.back());
    }
    double sum = 0;
    for_rows<Packing>([&](int, int m, int w, int h, int u) {
      const TaylorRow row = Packing::row(m, w, h, u);
      if (row == Packing::nothing()) {
        return;
      }
      const double factor =
          row.first < 0 ? 1 : (row.second < 0 ? 1 / std::sqrt(8.0) : (row.first == row.second ? 1 / 16.0 : 1 / 8.0));
      sum += factor * static_cast<double>(product(query, row) * product(key, row));
    });
    const double s = dot / std::sqrt(8.0);
    REQUIRE(sum == doctest::Approx(1 + s + s * s / 2).epsilon(1e-12));
  }
}

TEST_CASE_TEMPLATE("format_scale makes a product of inputs the format's feature of a key", Packing, HopperPacking,
                   HopperPacking8) {
  using Map = Taylor2<Packing::input_dim, SymmetricPacking>;
  std::vector<std::int64_t> x;
  double numbers[Packing::input_dim];
  for (int i = 0; i < Packing::input_dim; ++i) {
    x.push_back(i * i + 2);
    numbers[i] = static_cast<double>(x.back());
  }
  for_rows<Packing>([&](int, int m, int w, int h, int u) {
    const TaylorRow row = Packing::row(m, w, h, u);
    if (const int r = Packing::format_row(row); r >= 0) {
      const double feature = static_cast<double>(Packing::format_scale(row)) * static_cast<double>(product(x, row));
      REQUIRE(feature == doctest::Approx(Map::key_feature(numbers, r)).epsilon(1e-7));
    }
  });
}

}  // namespace
}  // namespace jrt::detail
