// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstring>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/rows.hpp"
#include "jrt/numeric.hpp"
#include "jrt/state.hpp"

namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// Working copy of one head's state: S with rows padded to whole packets, then z, likewise. The padding is 0.
template <class Format, class T>
struct WorkingState {
  static constexpr int rows = Format::rows;
  static constexpr int columns = Format::columns;
  static constexpr int stride = padded_to_lanes<T>(columns);
  static constexpr int normaliser_rows = padded_to_lanes<T>(rows);
  static constexpr std::int64_t elements = std::int64_t{rows} * stride + normaliser_rows;

  T* data = nullptr;

  [[nodiscard]] T* sums() const { return data; }
  [[nodiscard]] T* normaliser() const { return data + std::ptrdiff_t{rows} * stride; }

  void clear() const { std::memset(data, 0, sizeof(T) * elements); }

  /// Adds a state in `Format`, stored in any type.
  template <class Scalar>
  void add_slot(const Scalar* slot) const {
    for (int r = 0; r < rows; ++r) {
      add_row(slot + std::ptrdiff_t{r} * columns, sums() + std::ptrdiff_t{r} * stride, columns);
    }
    add_row(slot + Format::normaliser_offset, normaliser(), rows);
  }

  template <class Scalar>
  void write(Scalar* slot) const {
    for (int r = 0; r < rows; ++r) {
      convert_row(sums() + std::ptrdiff_t{r} * stride, slot + std::ptrdiff_t{r} * columns, columns);
    }
    convert_row(normaliser(), slot + Format::normaliser_offset, rows);
  }

  void add(const WorkingState& other) const {
    for (std::int64_t i = 0; i < elements; ++i) {
      data[i] += other.data[i];
    }
  }

 private:
  template <class Scalar>
  static void add_row(const Scalar* from, T* to, std::ptrdiff_t count) {
    for (std::ptrdiff_t i = 0; i < count; ++i) {
      to[i] += convert<T>(from[i]);
    }
  }
};

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
