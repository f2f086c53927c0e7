// SPDX-License-Identifier: Apache-2.0
#include <jrt/detail/plan/window_range.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <set>

namespace jrt::detail {
namespace {

static_assert(window_shows(5, 5, 0) && window_shows(5, 3, 2) && !window_shows(5, 2, 2) && !window_shows(5, 6, 2));
static_assert(keys_in_window(10, 4, 3, 0) == TokenRange{7, 14});
static_assert(all_in_window(10, 2, {8, 11}, 3) && !all_in_window(10, 2, {7, 11}, 3) && !all_in_window(10, 2, {8, 12}, 3));
static_assert(ring_row(0, 4) == 0 && ring_row(4, 4) == 4 && ring_row(5, 4) == 0);

static_assert(queries_of_keys(10, 4, 3, 100) == TokenRange{10, 17});
static_assert(queries_of_keys(10, 4, 3, 15) == TokenRange{10, 15} && queries_of_keys(10, 0, 3, 15) == TokenRange{10, 10});
static_assert(queries_of_keys(20, 4, 3, 15) == TokenRange{20, 20});

TEST_CASE("keys_in_window is what a mask shows to any of the queries, for every small case") {
  for (std::int64_t left = 0; left <= 6; ++left) {
    for (std::int64_t first = -8; first <= 8; ++first) {
      for (std::int64_t count = 0; count <= 7; ++count) {
        for (std::int64_t lowest = -10; lowest <= first + count; ++lowest) {
          std::set<std::int64_t> seen;
          for (std::int64_t key = lowest; key <= 20; ++key) {
            for (std::int64_t query = first; query < first + count; ++query) {
              if (key >= query - left && key <= query) {
                REQUIRE(window_shows(query, key, left));
                seen.insert(key);
              } else {
                REQUIRE_FALSE(window_shows(query, key, left));
              }
            }
          }
          const TokenRange range = keys_in_window(first, count, left, lowest);
          CAPTURE(first);
          CAPTURE(count);
          CAPTURE(left);
          CAPTURE(lowest);
          REQUIRE(range.end - range.begin == static_cast<std::int64_t>(seen.size()));
          if (!seen.empty()) {
            REQUIRE(range.begin == *seen.begin());
            REQUIRE(range.end == *seen.rbegin() + 1);
          }
        }
      }
    }
  }
}

TEST_CASE("all_in_window tells whether anything is masked, for every small case") {
  for (std::int64_t left = 0; left <= 6; ++left) {
    for (std::int64_t first = -3; first <= 5; ++first) {
      for (std::int64_t count = 1; count <= 6; ++count) {
        for (std::int64_t begin = -10; begin <= 10; ++begin) {
          for (std::int64_t end = begin + 1; end <= 12; ++end) {
            bool all = true;
            for (std::int64_t query = first; query < first + count; ++query) {
              for (std::int64_t key = begin; key < end; ++key) {
                all = all && key >= query - left && key <= query;
              }
            }
            CAPTURE(first);
            CAPTURE(count);
            CAPTURE(left);
            CAPTURE(begin);
            CAPTURE(end);
            REQUIRE(all_in_window(first, count, {begin, end}, left) == all);
          }
        }
      }
    }
  }
}

TEST_CASE("any left + 1 tokens in a row have rows of their own, and a token the row of the one it replaces") {
  for (std::int64_t left = 0; left <= 9; ++left) {
    for (std::int64_t first = 0; first <= 40; ++first) {
      std::set<std::int64_t> rows;
      for (std::int64_t index = first; index <= first + left; ++index) {
        const std::int64_t row = ring_row(index, left);
        REQUIRE(row >= 0);
        REQUIRE(row <= left);
        rows.insert(row);
      }
      REQUIRE(static_cast<std::int64_t>(rows.size()) == left + 1);
      REQUIRE(ring_row(first, left) == ring_row(first + left + 1, left));
    }
  }
  CHECK(ring_row((std::int64_t{1} << 62) + 3, 127) == 3);
}

TEST_CASE("a count is legal as it is, or becomes so by whole rounds of the ring") {
  for (const std::int64_t left : {0, 1, 4, 63, 127, INT32_MAX - 1}) {
    CAPTURE(left);
    for (const std::int64_t count : {std::int64_t{0}, std::int64_t{1}, left, left + 1, max_counted - 1, max_counted}) {
      CHECK(legal_count(count, left) == count);
    }
    for (const std::int64_t count : {std::int64_t{-1}, std::int64_t{INT32_MIN}, INT64_MIN}) {
      CHECK(legal_count(count, left) == 0);
    }
    for (const std::int64_t count : {max_counted + 1, max_counted + 2, max_counted + left, max_counted + left + 1,
                                     max_counted + left + 2, INT64_MAX - 1, INT64_MAX}) {
      CAPTURE(count);
      const std::int64_t legal = legal_count(count, left);
      CHECK(legal <= max_counted);
      CHECK(legal >= max_counted - left);
      CHECK(ring_row(legal, left) == ring_row(count, left));
    }
  }
}

}  // namespace
}  // namespace jrt::detail
