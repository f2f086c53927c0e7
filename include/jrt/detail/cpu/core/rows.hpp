// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/simd.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/numeric.hpp"

/// Rows of numbers in memory.
namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// Numbers of a row of whole packets that holds `count`.
template <class T>
constexpr int padded_to_lanes(int count) {
  return round_up(count, lanes<T>);
}

/// Converts a row of elements to the compute type and back.
template <class From, class To>
inline void convert_row(const From* from, To* to, std::ptrdiff_t count) {
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(To));
  } else if constexpr (std::is_same_v<From, Half> && std::is_same_v<To, float>) {
    // Eigen uses the conversion instructions.
    using Source = Eigen::Map<const Eigen::Array<Eigen::half, Eigen::Dynamic, 1>>;
    Eigen::Map<Eigen::ArrayXf>(to, count) =
        Source(reinterpret_cast<const Eigen::half*>(from), count).template cast<float>();
  } else {
    for (std::ptrdiff_t i = 0; i < count; ++i) {
      to[i] = convert<To>(from[i]);
    }
  }
}

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
