// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/shared/state/taylor_rows.hpp"
#include "jrt/numeric.hpp"
#include "jrt/state_exchange.hpp"
#include "jrt/state_operations.hpp"

/// Operations on whole states. Each is a small struct that processes value i of head h of pair b; one kernel runs them all,
/// with one thread per value.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

template <class Work>
__global__ void __launch_bounds__(state_threads) for_numbers(const __grid_constant__ Work work, std::int64_t heads) {
  constexpr std::int64_t blocks = ceil_div<std::int64_t>(Work::numbers, state_threads);
  const std::int64_t i = blockIdx.x % blocks * state_threads + threadIdx.x;
  if (i < Work::numbers) {
    work(blockIdx.x / blocks / heads, blockIdx.x / blocks % heads, i);
  }
}

template <class Work>
Status run_on_states(const char* operation, const Work& work, std::int64_t count, std::int64_t heads, const Cuda& on) {
  constexpr std::int64_t blocks = ceil_div<std::int64_t>(Work::numbers, state_threads);
  return launch(operation, for_numbers<Work>, {count * heads * blocks, state_threads, 0}, on, work, heads);
}

template <class Format>
inline constexpr std::int64_t numbers_of = Format::head_values;

/// Address of a head's state; null for a padding row, or for a slot outside the pool, which the host could not see.
template <class Format>
__device__ typename Format::Scalar* head_or_null(const StateSlots<Format>& states, std::int64_t b, std::int64_t h) {
  return states.has_slot(b) ? states.pool.head(states.slot(b), h) : nullptr;
}

template <class Format>
struct ClearStates {
  static constexpr std::int64_t numbers = Format::head_elements;
  StateSlots<Format> states;

  __device__ void operator()(std::int64_t b, std::int64_t h, std::int64_t i) const {
    if (auto* const head = head_or_null(states, b, h); head != nullptr) {
      head[i] = typename Format::Scalar{};
    }
  }
};

template <class Format>
struct MergeStates {
  static constexpr std::int64_t numbers = numbers_of<Format>;
  StateSlots<Format> source;
  StateSlots<Format> destination;

  __device__ void operator()(std::int64_t b, std::int64_t h, std::int64_t i) const {
    using T = ComputeType<typename Format::Scalar>;
    const auto* const from = head_or_null(source, b, h);
    auto* const to = head_or_null(destination, b, h);
    if (from != nullptr && to != nullptr) {
      to[i] = convert<typename Format::Scalar>(convert<T>(from[i]) + convert<T>(to[i]));
    }
  }
};

template <class SourceMap, class DestinationMap>
__device__ constexpr RowTable<SourceMap, DestinationMap> row_table{};

/// Rows of the source's state for row `row` of the destination's.
template <class SourceMap, class DestinationMap>
__device__ SourceRows device_source_rows(std::int64_t row) {
  if constexpr (std::is_same_v<SourceMap, DestinationMap>) {
    return {row, row};
  } else {
    return row_table<SourceMap, DestinationMap>.rows[row];
  }
}

/// Row and column of a value of `Format`; z is column `Format::columns`.
template <class Format>
struct Place {
  std::int64_t row;
  std::int64_t column;

  __device__ explicit Place(std::int64_t i) {
    const bool sums = i < Format::normaliser_offset;
    row = sums ? i / Format::columns : i - Format::normaliser_offset;
    column = sums ? i % Format::columns : Format::columns;
  }
  /// Index of this column's value of a row in a state of the same width.
  template <class Other>
  [[nodiscard]] __device__ std::int64_t in(std::int64_t other_row) const {
    return column < Other::columns ? other_row * Other::columns + column : Other::normaliser_offset + other_row;
  }
};

template <class From, class To>
struct CopyStates {
  static constexpr std::int64_t numbers = numbers_of<To>;
  StateSlots<From> source;
  StateSlots<To> destination;

  __device__ void operator()(std::int64_t b, std::int64_t h, std::int64_t i) const {
    const auto* const from = head_or_null(source, b, h);
    auto* const to = head_or_null(destination, b, h);
    if (from == nullptr || to == nullptr) {
      return;
    }
    if constexpr (std::is_same_v<From, To>) {
      to[i] = from[i];
    } else {
      const Place<To> place(i);
      const SourceRows rows = device_source_rows<typename From::Features, typename To::Features>(place.row);
      to[i] = mean_of_pair<typename To::Scalar>(from[place.template in<From>(rows.first)],
                                                from[place.template in<From>(rows.second)]);
    }
  }
};

/// Value (row, column) of dense arrays, where column `columns` is z.
template <class Scalar>
__device__ Scalar& dense_number(const DenseStates<Scalar>& head, std::int64_t row, std::int64_t column,
                                std::int64_t columns) {
  return column < columns ? head.sums[row * head.row_stride + column * head.column_stride] : head.normaliser[row];
}

template <class Format, class Scalar>
struct ExportStates {
  using Dense = StateFormat<DenseMap<typename Format::Features>, Format::columns, Scalar>;
  static constexpr std::int64_t numbers = numbers_of<Dense>;
  StateSlots<Format> source;
  DenseStates<Scalar> destination;

  __device__ void operator()(std::int64_t b, std::int64_t h, std::int64_t i) const {
    if (const auto* const from = head_or_null(source, b, h); from != nullptr) {
      const Place<Dense> place(i);
      const std::int64_t row = device_source_rows<typename Format::Features, typename Dense::Features>(place.row).first;
      dense_number(dense_head(destination, b, h), place.row, place.column, Format::columns) =
          convert<Scalar>(from[place.template in<Format>(row)]);
    }
  }
};

template <class Format, class Scalar>
struct ImportStates {
  static constexpr std::int64_t numbers = numbers_of<Format>;
  DenseStates<Scalar> source;
  StateSlots<Format> destination;

  __device__ void operator()(std::int64_t b, std::int64_t h, std::int64_t i) const {
    if (auto* const to = head_or_null(destination, b, h); to != nullptr) {
      const Place<Format> place(i);
      const SourceRows rows = device_source_rows<DenseMap<typename Format::Features>, typename Format::Features>(place.row);
      const auto head = dense_head(source, b, h);
      to[i] = mean_of_pair<typename Format::Scalar>(dense_number(head, rows.first, place.column, Format::columns),
                                                    dense_number(head, rows.second, place.column, Format::columns));
    }
  }
};

/// Copies between slots and contiguous values, head by head, S then z without padding.
template <class Format>
struct GatherStates {
  static constexpr std::int64_t numbers = numbers_of<Format>;
  StateSlots<Format> source;
  typename Format::Scalar* packed;

  __device__ void operator()(std::int64_t b, std::int64_t h, std::int64_t i) const {
    const auto* const from = head_or_null(source, b, h);
    packed[(b * source.pool.heads + h) * numbers + i] = from != nullptr ? from[i] : typename Format::Scalar{};
  }
};

template <class Format>
struct ScatterStates {
  static constexpr std::int64_t numbers = numbers_of<Format>;
  const typename Format::Scalar* packed;
  StateSlots<Format> destination;

  __device__ void operator()(std::int64_t b, std::int64_t h, std::int64_t i) const {
    if (auto* const to = head_or_null(destination, b, h); to != nullptr) {
      to[i] = packed[(b * destination.pool.heads + h) * numbers + i];
    }
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
