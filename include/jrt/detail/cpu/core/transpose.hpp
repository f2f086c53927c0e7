// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/simd.hpp"
#include "jrt/detail/integer.hpp"

namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// to[c][r] = from[r][c] for `rows` x `columns` numbers, and 0 in the columns of `to` after the last row, up to a whole
/// packet. Block by block of lanes x lanes numbers in registers.
template <class T>
void transpose(const T* from, std::ptrdiff_t from_stride, int rows, int columns, T* to, std::ptrdiff_t to_stride) {
  constexpr int width = lanes<T>;
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // a vector type as template argument: its alignment is not needed
#endif
  Eigen::internal::PacketBlock<Packet<T>, width> block;
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
  for (int row = 0; row < rows; row += width) {
    const int present = smaller(width, rows - row);
    const int whole = columns / width * width;
    for (int column = 0; column < whole; column += width) {
      for (int r = 0; r < width; ++r) {
        block.packet[r] = r < present ? load(from + (row + r) * from_stride + column) : broadcast(T(0));
      }
      Eigen::internal::ptranspose(block);
      for (int c = 0; c < width; ++c) {
        store(to + (column + c) * to_stride + row, block.packet[c]);
      }
    }
    for (int column = whole; column < columns; ++column) {
      for (int r = 0; r < width; ++r) {
        to[column * to_stride + row + r] = r < present ? from[(row + r) * from_stride + column] : T(0);
      }
    }
  }
}

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
