// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "jrt/detail/cpu/state_operations.hpp"
#include "jrt/detail/saved_states.hpp"
#include "jrt/detail/taylor_rows.hpp"
#include "jrt/numeric.hpp"
#include "jrt/state_exchange.hpp"

namespace jrt::detail::cpu {

/// Dense arrays of sequence `b` and head `h`.
template <class Scalar>
DenseStates<Scalar> dense_head(const DenseStates<Scalar>& dense, std::int64_t b, std::int64_t h) {
  DenseStates<Scalar> head = dense;
  head.sums += b * dense.sequence_stride + h * dense.head_stride;
  head.normaliser += b * dense.normaliser_sequence_stride + h * dense.normaliser_head_stride;
  return head;
}

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

/// Numbers of one head in saved bytes.
template <class Format>
inline constexpr std::size_t saved_head_bytes = static_cast<std::size_t>(Format::normaliser_offset + Format::rows) *
                                                sizeof(typename Format::Scalar);

}  // namespace jrt::detail::cpu
