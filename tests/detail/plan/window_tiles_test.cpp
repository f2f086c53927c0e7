// SPDX-License-Identifier: Apache-2.0
#include <jrt/detail/plan/window_tiles.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <jrt/detail/plan/window_range.hpp>
#include <set>

namespace jrt::detail {
namespace {

static_assert(WindowTileRun<64, 0>::window_tiles == 1 && WindowTileRun<64, 1>::window_tiles == 2);
static_assert(WindowTileRun<64, 128>::window_tiles == 3 && WindowTileRun<64, 129>::window_tiles == 4);

/// A run's tiles of queries, and for each of them its tiles of keys, against what `window_shows` says of each token.
template <int tile, int left>
void check_run(int first, int tokens, int max_tiles) {
  const WindowTileRun<tile, left> run(first, tokens, -left, max_tiles);
  CAPTURE(first);
  CAPTURE(tokens);
  CAPTURE(max_tiles);
  REQUIRE(run.tiles >= 0);
  REQUIRE(run.tiles <= max_tiles);
  std::set<int> queries;
  for (int i = 0; i < run.tiles; ++i) {
    std::set<int> tiles;  // of keys that a query of tile i sees
    for (int query = first + i * tile; query < first + (i + 1) * tile && query < tokens; ++query) {
      REQUIRE(queries.insert(query).second);
      for (int key = -2 * left - tile; key < tokens; ++key) {
        if (window_shows(query, key, left)) {
          int j = 0;
          while (j < run.key_tiles() && !(key >= run.key_token(j) && key < run.key_token(j) + tile)) {
            ++j;
          }
          REQUIRE(j < run.key_tiles());
          tiles.insert(j);
        }
      }
    }
    REQUIRE(*tiles.begin() == i);  // the first query sees the first of them, and itself
    REQUIRE(*tiles.rbegin() == i + run.window_tiles - 1);
    REQUIRE(static_cast<int>(tiles.size()) == run.window_tiles);
  }
  // Queries: all that the sequence has from the first one on, as far as the tiles reach.
  const int end = smaller(tokens, first + max_tiles * tile);
  REQUIRE(static_cast<int>(queries.size()) == larger(0, end - first));
}

template <int tile, int left>
void check_runs() {
  CAPTURE(tile);
  CAPTURE(left);
  for (int max_tiles = 1; max_tiles <= 3; ++max_tiles) {
    for (int first = 0; first <= 3 * tile; first += tile) {
      for (int tokens = 0; tokens <= 5 * tile + 1; ++tokens) {
        check_run<tile, left>(first, tokens, max_tiles);
      }
    }
  }
}

TEST_CASE("a tile of queries sees these tiles of keys and no other, for every small run") {
  check_runs<1, 0>();
  check_runs<1, 3>();
  check_runs<4, 0>();
  check_runs<4, 1>();
  check_runs<4, 3>();
  check_runs<4, 4>();
  check_runs<4, 5>();
  check_runs<4, 8>();
  check_runs<4, 9>();
  check_runs<8, 20>();
}

TEST_CASE("the kernel's tiles, at the edges of a long run") {
  for (const int tokens : {1, 63, 64, 65, 200, 256}) {
    check_run<64, 128>(0, tokens, 4);
    check_run<64, 127>(64, tokens, 2);
    check_run<64, 129>(128, tokens, 1);
  }
}

}  // namespace
}  // namespace jrt::detail
