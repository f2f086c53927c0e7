// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/host_device.hpp"

namespace jrt::detail {

/// Tokens [begin, end).
struct TokenRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;

  [[nodiscard]] JRT_DETAIL_HD constexpr std::int64_t size() const { return end - begin; }
  friend constexpr bool operator==(const TokenRange&, const TokenRange&) = default;
};

}  // namespace jrt::detail
