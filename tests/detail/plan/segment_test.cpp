// SPDX-License-Identifier: Apache-2.0
#include <jrt/detail/plan/segment.hpp>

#include <doctest/doctest.h>

#include <initializer_list>

namespace jrt::detail {
namespace {

TEST_CASE("segments cover a range once, in order, in whole chunks, evenly, for every small range") {
  for (std::int64_t chunk = 1; chunk <= 5; ++chunk) {
    for (std::int64_t begin : {0, 3}) {
      for (std::int64_t size = 0; size <= 40; ++size) {
        for (std::int64_t segments = 1; segments <= 12; ++segments) {
          const TokenRange range{begin, begin + size};
          std::int64_t position = range.begin;
          std::int64_t smallest = size;
          std::int64_t largest = 0;
          for (std::int64_t i = 0; i < segments; ++i) {
            const TokenRange segment = segment_of(range, segments, i, chunk);
            REQUIRE(segment.begin == position);
            REQUIRE(segment.end >= segment.begin);
            if (segment.end < range.end) {
              REQUIRE(segment.size() % chunk == 0);
            }
            smallest = smaller(smallest, ceil_div(segment.size(), chunk));
            largest = larger(largest, ceil_div(segment.size(), chunk));
            position = segment.end;
          }
          REQUIRE(position == range.end);
          REQUIRE(largest - smallest <= 1);
        }
      }
    }
  }
}

}  // namespace
}  // namespace jrt::detail
