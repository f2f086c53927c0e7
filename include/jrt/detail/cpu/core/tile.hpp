// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/prefetch.hpp"
#include "jrt/detail/cpu/core/simd.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/detail/integer.hpp"

/// The register-blocked product that all of prefill is made of.
///
///                     ┌ b: depth x (Packets · lanes) ┐
///     a: Rows x depth │  one row of it is loaded,    │   every number of a is broadcast once and used Packets times,
///                     └  used Rows times             ┘   every packet of b Rows times; the sums never leave registers.
///
/// At the sizes of a chunk this gives about 90 % of the fused-multiply-add peak of an AVX-512 core, where Eigen's general
/// matrix product, which packs both operands first, gives about half (docs/performance.md, bench/cpu/tile_bench.cpp).
namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

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

/// Sums of a block of the result, in registers.
template <class T, int Rows, int Packets>
struct Tile {
  Packet<T> sums[Rows][Packets];

  void clear() {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int p = 0; p < Packets; ++p) {
        sums[r][p] = broadcast(T(0));
      }
    }
  }

  void add(const T* from, std::ptrdiff_t stride) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int p = 0; p < Packets; ++p) {
        sums[r][p] = cpu::add(sums[r][p], load(from + r * stride + p * lanes<T>));
      }
    }
  }

  void read(const T* from, std::ptrdiff_t stride) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int p = 0; p < Packets; ++p) {
        sums[r][p] = load(from + r * stride + p * lanes<T>);
      }
    }
  }

  void write(T* to, std::ptrdiff_t stride) const {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int p = 0; p < Packets; ++p) {
        store(to + r * stride + p * lanes<T>, sums[r][p]);
      }
    }
  }

  /// sums += a · b over `depth`. Prefetches lines of `next`, which may be null, meanwhile.
  void add_product(const Left<T>& a, const Right<T>& b, std::ptrdiff_t depth, LinePrefetch* next = nullptr) {
    std::ptrdiff_t k = 0;
    for (; next != nullptr && k < depth; k += steps_per_prefetch) {
      next->issue();
      add_steps({a.data + k * a.depth_stride, a.row_stride, a.depth_stride}, {b.data + k * b.stride, b.stride},
                smaller<std::ptrdiff_t>(steps_per_prefetch, depth - k));
    }
    if (k == 0) {
      add_steps(a, b, depth);
    }
  }

 private:
  void add_steps(const Left<T>& a, const Right<T>& b, std::ptrdiff_t depth) {
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

/// `function(Constant<rest>, first)`, unless the rest is 0.
template <class Function, int... smaller_by_one>
inline void for_rest(int rest, int first, const Function& function, std::integer_sequence<int, smaller_by_one...>) {
  (static_cast<void>(rest == smaller_by_one + 1 ? function(Constant<smaller_by_one + 1>{}, first) : void()), ...);
}

/// Cuts `count` into blocks of `Largest` and one smaller rest; calls `function(Constant<size>, first)` for each.
template <int Largest, class Function>
inline void for_blocks(int count, const Function& function) {
  int first = 0;
  for (; first + Largest <= count; first += Largest) {
    function(Constant<Largest>{}, first);
  }
  for_rest(count - first, first, function, std::make_integer_sequence<int, Largest - 1>{});
}

/// a · b over `depth`.
template <class T>
struct Product {
  Left<T> a;
  Right<T> b;
  std::ptrdiff_t depth;
};

/// A tile of `multiply_tiles`, `Rows` x `Packets` at a row and a column. Not inlined: the compiler's time for one function
/// of all tiles grows faster than their number.
template <class T, int Rows, int Packets>
[[gnu::noinline]] void multiply_tile(T* result, std::ptrdiff_t stride, const Product<T> (&products)[2], int row, int column,
                                     bool adds, LinePrefetch* next) {
  T* const to = result + row * stride + column;
  Tile<T, Rows, Packets> tile;
  tile.clear();
  for (const Product<T>& product : products) {
    tile.add_product(product.a.from_row(row), product.b.from_column(column), product.depth, next);
  }
  if (adds) {
    tile.add(to, stride);
  }
  tile.write(to, stride);
}

template <class T>
using MultiplyTile = void (*)(T*, std::ptrdiff_t, const Product<T> (&)[2], int, int, bool, LinePrefetch*);

/// `multiply_tile` for each number of rows and, within it, of packets.
template <class T, int... i>
constexpr std::array<MultiplyTile<T>, sizeof...(i)> each_tile(std::integer_sequence<int, i...>) {
  return {multiply_tile<T, i / tile_packets + 1, i % tile_packets + 1>...};
}

/// result (rows x columns, row stride `stride`) = the sum of both products, or += where `adds`, in tiles. `columns` is a
/// multiple of the lanes. Prefetches lines of `next`, which may be null, meanwhile.
template <class T>
[[gnu::noinline]] void multiply_tiles(T* result, std::ptrdiff_t stride, int rows, int columns,
                                      const Product<T> (&products)[2], bool adds, LinePrefetch* next = nullptr) {
  static constexpr auto multiply = each_tile<T>(std::make_integer_sequence<int, tile_rows * tile_packets>{});
  constexpr int tile_columns = tile_packets * lanes<T>;
  for (int column = 0; column < columns; column += tile_columns) {
    const int packets = smaller(tile_columns, columns - column) / lanes<T>;
    for (int row = 0; row < rows; row += tile_rows) {
      const int tile = (smaller(tile_rows, rows - row) - 1) * tile_packets + packets - 1;
      multiply[static_cast<std::size_t>(tile)](result, stride, products, row, column, adds, next);
    }
  }
}

/// The same for one product.
template <class T>
void multiply_tiles(T* result, std::ptrdiff_t stride, int rows, int columns, const Product<T>& product, bool adds) {
  multiply_tiles(result, stride, rows, columns, {product, {product.a, product.b, 0}}, adds);
}

/// result += a · b. Prefetches lines of `next`, which may be null, meanwhile.
template <class T>
void add_product(T* result, std::ptrdiff_t stride, int rows, int columns, const Left<T>& a, const Right<T>& b,
                 std::ptrdiff_t depth, LinePrefetch* next = nullptr) {
  multiply_tiles(result, stride, rows, columns, {{a, b, depth}, {a, b, 0}}, true, next);
}

/// result = a1 · b1 + a2 · b2. Prefetches lines of `next`, which may be null, meanwhile.
template <class T>
void sum_of_products(T* result, std::ptrdiff_t stride, int rows, int columns, const Left<T>& a1, const Right<T>& b1,
                     std::ptrdiff_t depth1, const Left<T>& a2, const Right<T>& b2, std::ptrdiff_t depth2,
                     LinePrefetch* next = nullptr) {
  multiply_tiles(result, stride, rows, columns, {{a1, b1, depth1}, {a2, b2, depth2}}, false, next);
}

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
