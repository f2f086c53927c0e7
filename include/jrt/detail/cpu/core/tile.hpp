// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/prefetch.hpp"
#include "jrt/detail/cpu/core/simd.hpp"

/// The register-blocked product that all of prefill is made of.
///
///                     ┌ b: depth x (Packets · lanes) ┐
///     a: Rows x depth │  one row of it is loaded,    │   every number of a is broadcast once and used Packets times,
///                     └  used Rows times             ┘   every packet of b Rows times; the sums never leave registers.
///
/// At the sizes of a chunk this gives about 90 % of the fused-multiply-add peak of an AVX-512 core, where Eigen's general
/// matrix product, which packs both operands first, gives about half (docs/performance.md, bench/cpu/tile_bench.cpp).
namespace jrt::detail::cpu::inline JRT_DETAIL_CPU_ABI {

/// Left operand: element (row, k) at `data[row * row_stride + k * depth_stride]`.
template <class T>
struct Left {
  const T* data;
  std::ptrdiff_t row_stride;
  std::ptrdiff_t depth_stride;

  [[nodiscard]] Left from_row(std::ptrdiff_t row) const { return {data + row * row_stride, row_stride, depth_stride}; }
};

/// Right operand: row k at `data + k * stride`.
template <class T>
struct Right {
  const T* data;
  std::ptrdiff_t stride;

  [[nodiscard]] Right from_column(std::ptrdiff_t column) const { return {data + column, stride}; }
};

/// Rows of a tile, and packets in one of its rows: 24 sums, 4 packets of b and one broadcast fill 32 registers; 12, 2 and
/// one fit 16.
inline constexpr int tile_rows = 6;
inline constexpr int tile_packets = vector_registers >= 32 ? 4 : 2;

/// Sums of a block of the result, in registers.
template <class T, int Rows, int Packets>
struct Tile {
  Packet<T> sums[Rows][Packets];

  EIGEN_STRONG_INLINE void clear() {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int p = 0; p < Packets; ++p) {
        sums[r][p] = broadcast(T(0));
      }
    }
  }

  EIGEN_STRONG_INLINE void add(const T* from, std::ptrdiff_t stride) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int p = 0; p < Packets; ++p) {
        sums[r][p] = cpu::add(sums[r][p], load(from + r * stride + p * lanes<T>));
      }
    }
  }

  EIGEN_STRONG_INLINE void read(const T* from, std::ptrdiff_t stride) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int p = 0; p < Packets; ++p) {
        sums[r][p] = load(from + r * stride + p * lanes<T>);
      }
    }
  }

  EIGEN_STRONG_INLINE void write(T* to, std::ptrdiff_t stride) const {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int p = 0; p < Packets; ++p) {
        store(to + r * stride + p * lanes<T>, sums[r][p]);
      }
    }
  }

  /// sums += a · b over `depth`.
  EIGEN_STRONG_INLINE void add_product(const Left<T>& a, const Right<T>& b, std::ptrdiff_t depth) {
    const T* a_column = a.data;
    const T* b_row = b.data;
    for (std::ptrdiff_t k = 0; k < depth; ++k, a_column += a.depth_stride, b_row += b.stride) {
      Packet<T> row[Packets];
#pragma GCC unroll 8
      for (int p = 0; p < Packets; ++p) {
        row[p] = load(b_row + p * lanes<T>);
      }
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const Packet<T> left = broadcast(a_column[r * a.row_stride]);
#pragma GCC unroll 8
        for (int p = 0; p < Packets; ++p) {
          sums[r][p] = multiply_add(left, row[p], sums[r][p]);
        }
      }
    }
  }
};

template <int n>
using Constant = std::integral_constant<int, n>;

/// Cuts `count` into blocks of `Largest` and one smaller rest; calls `function(Constant<size>, first)` for each.
template <int Largest, class Function>
EIGEN_STRONG_INLINE void for_blocks(int count, const Function& function) {
  int first = 0;
  for (; first + Largest <= count; first += Largest) {
    function(Constant<Largest>{}, first);
  }
  if constexpr (Largest > 1) {
    if (first < count) {
      for_blocks<Largest - 1>(count - first, [&](auto size, int offset) { function(size, first + offset); });
    }
  }
}

/// result (rows x columns, row stride `stride`) += a · b, in tiles. `columns` is a multiple of the lanes. Meanwhile the
/// rows of `next` are prefetched, `rows_per_tile` with every tile. Not inlined, so that all operators share one copy.
template <class T>
[[gnu::noinline]] void add_product(T* result, std::ptrdiff_t stride, int rows, int columns, const Left<T>& a,
                                   const Right<T>& b, std::ptrdiff_t depth, const RowPrefetch (&next)[2],
                                   int rows_per_tile) {
  for_blocks<tile_packets>(columns / lanes<T>, [&](auto packets, int first_packet) {
    const int column = first_packet * lanes<T>;
    for_blocks<tile_rows>(rows, [&](auto tile_row_count, int row) {
      for (const RowPrefetch& prefetch : next) {
        prefetch.issue(std::int64_t{row} / tile_rows * rows_per_tile, rows_per_tile);
      }
      Tile<T, tile_row_count, packets> tile;
      tile.clear();
      tile.add_product(a.from_row(row), b.from_column(column), depth);
      tile.add(result + row * stride + column, stride);
      tile.write(result + row * stride + column, stride);
    });
  });
}

/// result (rows x columns) = a1 · b1 + a2 · b2, rows <= tile_rows.
template <class T>
[[gnu::noinline]] void sum_of_products(T* result, std::ptrdiff_t stride, int rows, int columns, const Left<T>& a1,
                                       const Right<T>& b1, std::ptrdiff_t depth1, const Left<T>& a2, const Right<T>& b2,
                                       std::ptrdiff_t depth2) {
  for_blocks<tile_packets>(columns / lanes<T>, [&](auto packets, int first_packet) {
    const int column = first_packet * lanes<T>;
    for_blocks<tile_rows>(rows, [&](auto tile_row_count, int row) {
      Tile<T, tile_row_count, packets> tile;
      tile.clear();
      tile.add_product(a1.from_row(row), b1.from_column(column), depth1);
      tile.add_product(a2.from_row(row), b2.from_column(column), depth2);
      tile.write(result + row * stride + column, stride);
    });
  });
}

}  // namespace jrt::detail::cpu::inline JRT_DETAIL_CPU_ABI
