// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/host_device.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/token_range.hpp"

namespace jrt::detail {

/// Segment `index` of `segments` of a range. Segments are whole chunks (the last one of the range excepted), in order, and
/// as even as that allows; the last ones may be empty. The partition depends on the length alone, not on `begin`.
JRT_DETAIL_HD constexpr TokenRange segment_of(const TokenRange& range, std::int64_t segments, std::int64_t index,
                                              std::int64_t chunk) {
  const std::int64_t chunks = ceil_div(larger<std::int64_t>(range.size(), 0), chunk);
  const std::int64_t each = chunks / segments;
  const std::int64_t longer = chunks % segments;
  const std::int64_t first = index * each + smaller(index, longer);
  const std::int64_t last = first + each + (index < longer ? 1 : 0);
  return {range.begin + smaller(first * chunk, range.size()), range.begin + smaller(last * chunk, range.size())};
}

}  // namespace jrt::detail
