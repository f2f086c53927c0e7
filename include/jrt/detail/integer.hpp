// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/host_device.hpp"

namespace jrt::detail {

template <class Integer>
JRT_DETAIL_HD constexpr Integer ceil_div(Integer value, Integer divisor) {
  return (value + divisor - 1) / divisor;
}

template <class Integer>
JRT_DETAIL_HD constexpr Integer round_up(Integer value, Integer multiple) {
  return ceil_div(value, multiple) * multiple;
}

template <class Integer>
JRT_DETAIL_HD constexpr Integer smaller(Integer a, Integer b) {
  return b < a ? b : a;
}

template <class Integer>
JRT_DETAIL_HD constexpr Integer larger(Integer a, Integer b) {
  return a < b ? b : a;
}

/// Instantiates the above. g++ 14 does not where a user's template is the first to use a constant made of them, and reports
/// them as used before their definition.
template <class Integer>
inline constexpr bool instantiated = ceil_div(Integer{5}, Integer{4}) == 2 && round_up(Integer{5}, Integer{4}) == 8 &&
                                     smaller(Integer{5}, Integer{4}) == 4 && larger(Integer{5}, Integer{4}) == 5;
static_assert(instantiated<int> && instantiated<std::int64_t> && instantiated<std::size_t>);

}  // namespace jrt::detail
