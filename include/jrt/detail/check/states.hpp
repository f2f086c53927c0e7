// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "jrt/detail/check/checker.hpp"
#include "jrt/state_exchange.hpp"

/// What makes the arguments of operations on whole states valid, as far as it shows without a look into the slot arrays.
namespace jrt::detail {

template <class Format>
void check_states_shape(Checker& check, const char* argument, const StateSlots<Format>& states, std::int64_t count,
                        std::int64_t heads) {
  check.at_least("count", "value", count, 0);
  check.not_null(argument, states.pool.data);
  check.at_least(argument, "heads", heads, 1);
  check.pool(argument, states.pool, heads);
}

template <class Format, class Scalar>
void check_dense(Checker& check, const char* sums, const char* normaliser, const DenseStates<Scalar>& dense) {
  check.not_null(sums, dense.sums);
  check.not_null(normaliser, dense.normaliser);
  check.aligned(sums, dense.sums, alignof(Scalar));
  check.aligned(normaliser, dense.normaliser, alignof(Scalar));
}

/// Dense arrays that are written to: no element stands for two.
template <class Format, class Scalar>
void check_dense_written(Checker& check, const DenseStates<Scalar>& destination, std::int64_t count, std::int64_t heads) {
  check_dense<Format>(check, "destination.sums", "destination.normaliser", destination);
  if (check.ok()) {
    constexpr std::int64_t rows = DenseMap<typename Format::Features>::feature_dim;
    Checker::Extent sums[] = {{"sequence_stride", count, destination.sequence_stride},
                              {"head_stride", heads, destination.head_stride},
                              {"row_stride", rows, destination.row_stride},
                              {"column_stride", Format::columns, destination.column_stride}};
    check.nested("destination", sums, 1);
    Checker::Extent normaliser[] = {{"normaliser_sequence_stride", count, destination.normaliser_sequence_stride},
                                    {"normaliser_head_stride", heads, destination.normaliser_head_stride}};
    check.nested("destination", normaliser, rows);
  }
}

template <class Format>
void check_save_buffer(Checker& check, std::span<std::byte> buffer, std::int64_t count, std::int64_t heads) {
  if (check.ok()) {
    check.at_least("buffer", "bytes", static_cast<std::int64_t>(buffer.size()), saved_states_bytes<Format>(count, heads));
  }
}

}  // namespace jrt::detail
