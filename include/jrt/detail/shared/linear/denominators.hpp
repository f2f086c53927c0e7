// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/host_device.hpp"
#include "jrt/tensor_view.hpp"

/// φ(q)ᵀz of every query, for callers that merge the outputs with others.
namespace jrt::detail {

/// Whether an operator computes denominators.
template <class Config>
inline constexpr bool has_denominators = Config::Normaliser::uses_denominator;

/// Stores the denominator of one query, if the call has a view for it.
template <class T>
JRT_DETAIL_HD void store_denominator(const TensorView<T>& denominators, std::int64_t row, std::int64_t token,
                                     std::int64_t head, T denominator) {
  if (denominators.data != nullptr) {
    *denominators.row(row, token, head) = denominator;
  }
}

}  // namespace jrt::detail
