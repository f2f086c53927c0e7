// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/host_device.hpp"
#include "jrt/tensor_view.hpp"

/// φ(q)ᵀz of every query, for a mixer that goes on where linear attention ends.
namespace jrt::detail {

/// Where they go: a number per (sequence, token, query head).
template <class T>
struct KeptDenominators {
  TensorView<T> view;

  JRT_DETAIL_HD void put(std::int64_t row, std::int64_t token, std::int64_t head, T denominator) const {
    *view.row(row, token, head) = denominator;
  }
};

template <class T>
KeptDenominators(TensorView<T>) -> KeptDenominators<T>;

/// Discards them.
struct NoDenominators {
  template <class T>
  JRT_DETAIL_HD void put(std::int64_t /*row*/, std::int64_t /*token*/, std::int64_t /*head*/, T /*denominator*/) const {}
};

/// Whether an operator keeps its denominators.
template <class Config>
inline constexpr bool keeps_denominators = requires {
  Config::keeps_denominators;
};

template <class Args>
JRT_DETAIL_HD auto denominators_of(const Args& args) {
  if constexpr (requires { args.denominators; }) {
    return KeptDenominators{args.denominators};
  } else {
    return NoDenominators{};
  }
}

}  // namespace jrt::detail
