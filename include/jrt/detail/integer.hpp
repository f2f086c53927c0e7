// SPDX-License-Identifier: Apache-2.0
#pragma once

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

}  // namespace jrt::detail
