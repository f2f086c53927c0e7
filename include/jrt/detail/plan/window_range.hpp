// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/host_device.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/token_range.hpp"

/// Which keys each query of a sliding window sees. Tokens of a call are counted from 0; earlier ones, held by a cache, have
/// negative indices. Query i sees keys i − left … i: both ends included, itself included.
namespace jrt::detail {

JRT_DETAIL_HD constexpr bool window_shows(std::int64_t query, std::int64_t key, std::int64_t left) {
  return key >= query - left && key <= query;
}

/// Keys that at least one of the queries [first, first + count) sees, of those from `lowest` on; empty if count is 0.
JRT_DETAIL_HD constexpr TokenRange keys_in_window(std::int64_t first, std::int64_t count, std::int64_t left,
                                                  std::int64_t lowest) {
  const std::int64_t begin = larger(first - left, lowest);
  return {begin, count > 0 ? larger(begin, first + count) : begin};
}

/// Queries that see at least one of the keys [first, first + count), of those before `end`; empty if count is 0.
JRT_DETAIL_HD constexpr TokenRange queries_of_keys(std::int64_t first, std::int64_t count, std::int64_t left,
                                                   std::int64_t end) {
  return {first, count > 0 ? larger(first, smaller(first + count + left, end)) : first};
}

/// Whether each of the queries [first, first + count) sees each of the keys, so that nothing has to be masked.
JRT_DETAIL_HD constexpr bool all_in_window(std::int64_t first, std::int64_t count, const TokenRange& keys,
                                           std::int64_t left) {
  return keys.begin >= first + count - 1 - left && keys.end <= first + 1;
}

/// Row of a ring of left + 1 tokens that holds the token with this absolute index, counted from 0.
JRT_DETAIL_HD constexpr std::int64_t ring_row(std::int64_t index, std::int64_t left) {
  return index % (left + 1);
}

/// Largest token count of a ring. No call has the 2^62 tokens that are left to 2^63 (its outputs would not fit in memory),
/// so positions do not overflow.
inline constexpr std::int64_t max_counted = std::int64_t{1} << 62;

/// Maps any 64-bit value to a legal count of a ring of left + 1 tokens: legal counts are unchanged, a negative one becomes
/// 0, and one above the maximum is reduced by a multiple of left + 1, so that every token keeps its row.
JRT_DETAIL_HD constexpr std::int64_t legal_count(std::int64_t count, std::int64_t left) {
  return count <= max_counted ? larger<std::int64_t>(0, count)
                              : max_counted - left + (count - max_counted - 1) % (left + 1);
}

}  // namespace jrt::detail
