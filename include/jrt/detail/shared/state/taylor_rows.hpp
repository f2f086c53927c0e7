// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/host_device.hpp"
#include "jrt/numeric.hpp"
#include "jrt/policy/taylor.hpp"

namespace jrt::detail {

/// The rows of one state format with the contents of a row of another; the same row twice where there is only one.
struct SourceRows {
  std::int64_t first = 0;
  std::int64_t second = 0;
};

/// For every row of the destination's packing, the source's rows.
template <class SourceMap, class DestinationMap>
struct RowTable;

template <int d, class SourcePacking, class DestinationPacking>
struct RowTable<Taylor2<d, SourcePacking>, Taylor2<d, DestinationPacking>> {
  SourceRows rows[DestinationPacking::template rows<d>]{};

  constexpr RowTable() {
    // Row of each product in the source, in either order of its indices, found in one pass over its rows.
    std::int64_t position[(d + 1) * (d + 1)] = {};
    for (int i = 0; i < (d + 1) * (d + 1); ++i) {
      position[i] = -1;
    }
    for (int r = 0; r < SourcePacking::template rows<d>; ++r) {
      position[index(SourcePacking::template row<d>(r))] = r;
    }
    for (int r = 0; r < DestinationPacking::template rows<d>; ++r) {
      const TaylorRow wanted = DestinationPacking::template row<d>(r);
      const std::int64_t straight = position[index(wanted)];
      const std::int64_t swapped = position[index({wanted.second, wanted.first})];
      const std::int64_t other = wanted.second < 0 || swapped < 0 ? straight : swapped;
      // A packing that stores pairs twice keeps its own entry for each order; one that stores them once covers both.
      const bool keep = DestinationPacking::stores_pairs_twice && straight >= 0;
      rows[r].first = straight < 0 ? swapped : straight;
      rows[r].second = keep ? rows[r].first : other;
    }
  }

  static constexpr int index(const TaylorRow& row) { return (row.first + 1) * (d + 1) + row.second + 1; }
};

/// Rows of `SourceMap`'s state for row `row` of `DestinationMap`'s.
template <class SourceMap, class DestinationMap>
SourceRows source_rows(std::int64_t row) {
  if constexpr (std::is_same_v<SourceMap, DestinationMap>) {
    return {row, row};
  } else {
    static constexpr RowTable<SourceMap, DestinationMap> table;
    return table.rows[row];
  }
}

/// A row's value from its one or two rows of the source. Equal values must be copied unchanged, so a pair is averaged only
/// where its two values differ.
template <class To, class From>
JRT_DETAIL_HD To mean_of_pair(From first, From second) {
  using T = std::conditional_t<std::is_same_v<From, double> || std::is_same_v<To, double>, double, float>;
  const T a = convert<T>(first);
  const T b = convert<T>(second);
  return convert<To>(a == b ? a : (a + b) / T(2));
}

}  // namespace jrt::detail
