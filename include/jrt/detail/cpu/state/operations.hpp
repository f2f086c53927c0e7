// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/shared/state/taylor_rows.hpp"
#include "jrt/numeric.hpp"
#include "jrt/state_operations.hpp"

namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

// The arrays of a state may have other types than its format's Scalar, so whole states are moved as bytes.

template <class Format>
void clear_head(typename Format::Scalar* state) {
  std::memset(static_cast<void*>(state), 0, static_cast<std::size_t>(Format::slot_bytes(1)));
}

template <class Format>
void merge_head(const typename Format::Scalar* source, typename Format::Scalar* destination) {
  using Scalar = typename Format::Scalar;
  using T = ComputeType<Scalar>;
  for (std::int64_t i = 0; i < Format::normaliser_offset + Format::rows; ++i) {
    destination[i] = convert<Scalar>(convert<T>(source[i]) + convert<T>(destination[i]));
  }
}

/// Row `row` of the destination from its one or two rows of the source.
template <class From, class To>
void copy_row(const From* source, To* destination, std::int64_t width, std::int64_t row, const SourceRows& rows) {
  for (std::int64_t c = 0; c < width; ++c) {
    destination[row * width + c] = mean_of_pair<To>(source[rows.first * width + c], source[rows.second * width + c]);
  }
}

template <class SourceFormat, class DestinationFormat>
void copy_head(const typename SourceFormat::Scalar* source, typename DestinationFormat::Scalar* destination) {
  if constexpr (std::is_same_v<SourceFormat, DestinationFormat>) {
    std::memmove(static_cast<void*>(destination), source, static_cast<std::size_t>(SourceFormat::slot_bytes(1)));
  } else {
    for (std::int64_t row = 0; row < DestinationFormat::rows; ++row) {
      const SourceRows rows = source_rows<typename SourceFormat::Features, typename DestinationFormat::Features>(row);
      copy_row(source, destination, SourceFormat::columns, row, rows);
      copy_row(source + SourceFormat::normaliser_offset, destination + DestinationFormat::normaliser_offset, 1, row, rows);
    }
  }
}

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
