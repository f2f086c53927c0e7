// SPDX-License-Identifier: Apache-2.0
#include <jrt/policy/split.hpp>

#include <doctest/doctest.h>

#include <initializer_list>

namespace jrt {
namespace {

static_assert(Split<OccupancySplit<>> && Split<LengthSplit<>>);

TEST_CASE("the occupancy split makes segments for idle workers, none too short") {
  using S = OccupancySplit<100>;
  CHECK(S::segments(10'000, 16, 2) == 1);  // enough heads
  CHECK(S::segments(10'000, 1, 8) == 8);   // one head, eight workers
  CHECK(S::segments(10'000, 3, 8) == 2);   // two workers for each head
  CHECK(S::segments(10'000, 5, 8) == 1);   // a split would cost more than three idle workers
  CHECK(S::segments(250, 1, 8) == 2);      // 8 segments would be too short
  CHECK(S::segments(99, 1, 8) == 1);
  CHECK(S::segments(0, 0, 8) == 1);
}

TEST_CASE("the length split looks at the length alone") {
  using S = LengthSplit<100>;
  for (const std::int64_t tokens : {0, 1, 99, 100, 101, 1000}) {
    const std::int64_t expected = tokens <= 100 ? 1 : (tokens + 99) / 100;
    for (const std::int64_t heads : {1, 7, 1000}) {
      for (const std::int64_t workers : {1, 300}) {
        CHECK(S::segments(tokens, heads, workers) == expected);
      }
    }
  }
}

}  // namespace
}  // namespace jrt
