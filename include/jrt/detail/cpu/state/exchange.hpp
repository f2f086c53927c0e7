// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/state/operations.hpp"
#include "jrt/detail/shared/state/saved_states.hpp"
#include "jrt/detail/shared/state/taylor_rows.hpp"
#include "jrt/numeric.hpp"
#include "jrt/state_exchange.hpp"

namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

template <class Format, class Scalar>
void export_head(const typename Format::Scalar* state, const DenseStates<Scalar>& dense) {
  using Dense = DenseMap<typename Format::Features>;
  for (std::int64_t row = 0; row < Dense::feature_dim; ++row) {
    const std::int64_t packed = source_rows<typename Format::Features, Dense>(row).first;
    for (std::int64_t c = 0; c < Format::columns; ++c) {
      // The caller has checked the pointer. NOLINTNEXTLINE(clang-analyzer-core.NullDereference)
      dense.sums[row * dense.row_stride + c * dense.column_stride] = convert<Scalar>(state[packed * Format::columns + c]);
    }
    dense.normaliser[row] = convert<Scalar>(state[Format::normaliser_offset + packed]);
  }
}

template <class Format, class Scalar>
void import_head(const DenseStates<Scalar>& dense, typename Format::Scalar* state) {
  using Dense = DenseMap<typename Format::Features>;
  using To = typename Format::Scalar;
  for (std::int64_t row = 0; row < Format::rows; ++row) {
    const SourceRows from = source_rows<Dense, typename Format::Features>(row);
    for (std::int64_t c = 0; c < Format::columns; ++c) {
      const std::int64_t column = c * dense.column_stride;
      state[row * Format::columns + c] = mean_of_pair<To>(dense.sums[from.first * dense.row_stride + column],
                                                          dense.sums[from.second * dense.row_stride + column]);
    }
    state[Format::normaliser_offset + row] = mean_of_pair<To>(dense.normaliser[from.first], dense.normaliser[from.second]);
  }
}

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
