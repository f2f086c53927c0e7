// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstring>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/simd.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/numeric.hpp"
#include "jrt/state.hpp"

namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

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
