// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/host_device.hpp"
#include "jrt/policy/taylor.hpp"

/// The order in which the sm_90a kernels keep the rows of a Taylor state, d = 16: each product of two inputs once, in 160
/// rows, ten times the 16 rows that the matrix unit takes at a time (SymmetricPacking's 153 do not have such a shape).
///
/// Inputs x = (L, H), two halves of 8, and (half)^r is a half shifted by r: element u is input (u + r) mod 8 of it. Rows
/// come in groups of 8: row 64m + 16w + 8h + u is element u of
///
///              m = 0                   m = 1                                        m = 2
///     w = 0    h=0: L · L              h=0: L · H^4                                 h=0: L · H
///              h=1: H · H              h=1: L · L^4 (u < 4), H · H^4 (u >= 4)       h=1: 1 (u = 0), nothing (u > 0)
///     w > 0    h=0: L · L^w            h=0: L · H^w                                 w=1: L, H
///              h=1: H · H^w            h=1: H · L^w                                 w=2, 3: nothing
///
/// so that warp w of the warps that keep the state (see linear/sm90/state_warps.cuh) computes all of its products from one
/// pair of halves and the same pair shifted by w (by 4 for w = 0). Rows with nothing are 0, and the last two groups of 16
/// are not published.
///
/// Keys are multiplied as they are. All factors are on the query's side, where at d = 16 they are powers of two, exact in
/// any type: φ(q)·φ(k) = 1 + (q/4)·k + Σ_{i<j} (q_i q_j/16)(k_i k_j) + Σ_i (q_i²/32) k_i².
namespace jrt::detail {

/// What packings for d inputs share: the same rows as the state's format, in another order and without its factors.
template <int d>
struct HopperRows {
  static constexpr int input_dim = d;
  // Of the same map's state. (Through the map: nvcc 13.0 loses the argument of a packing's `rows` in some programs.)
  static constexpr int format_rows = Taylor2<input_dim, SymmetricPacking>::feature_dim;

  JRT_DETAIL_HD static constexpr TaylorRow nothing() { return {-2, -2}; }

  /// Row of `SymmetricPacking` with the same contents; negative if there is none.
  JRT_DETAIL_HD static constexpr int format_row(const TaylorRow& row) {
    if (row == nothing()) {
      return -1;
    }
    if (row.first < 0) {
      return format_rows - 1;
    }
    if (row.second < 0) {
      return row.first;
    }
    // Block s holds x_i · x_(i+s), s <= d/2; block d/2 its first half only.
    const int shift = (row.second - row.first) & (input_dim - 1);
    const bool swapped = shift > input_dim / 2 || (shift == input_dim / 2 && row.first >= input_dim / 2);
    return input_dim + input_dim * (swapped ? input_dim - shift : shift) + (swapped ? row.second : row.first);
  }

  /// Factor of a key's feature in the state's format (`Taylor2::key_feature`), where this packing has none.
  JRT_DETAIL_HD static constexpr float format_scale(const TaylorRow& row) {
    using Map = Taylor2<input_dim, SymmetricPacking>;
    return row.first < 0 ? 1.0F : static_cast<float>(row.second < 0 ? Map::linear_scale : Map::product_scale);
  }

 protected:
  /// Input u of a half, shifted.
  JRT_DETAIL_HD static constexpr int input(int half, int u, int shift) { return 8 * half + ((u + shift) & 7); }
};

struct HopperPacking : HopperRows<16> {
  static constexpr int row_tiles = 3;  // of 64 rows in the accumulators
  static constexpr int rows = 160;     // read by queries
  // Where the constant feature is.
  static constexpr int constant_tile = 2;
  static constexpr int constant_row = 0;  // u; w = 0, h = 1

  /// What row 64m + 16w + 8h + u holds.
  JRT_DETAIL_HD static constexpr TaylorRow row(int m, int w, int h, int u) {
    if (m == 0) {
      return {input(h, u, 0), input(h, u, w)};
    }
    if (m == 1) {
      if (w > 0) {
        return {input(h, u, 0), input(1 - h, u, w)};
      }
      const int half = h == 1 && u >= 4 ? 1 : 0;
      return {input(half, u, 0), input(h == 0 ? 1 : half, u, 4)};
    }
    if (w == 0) {
      return h == 0 ? TaylorRow{input(0, u, 0), input(1, u, 0)} : (u == constant_row ? TaylorRow{} : nothing());
    }
    return w == 1 ? TaylorRow{input(h, u, 0), -1} : nothing();
  }
};

/// The order of the 45 rows of d = 8, in the same terms with x = L: one tile, of which warp 3 has nothing and 48 rows are
/// read.
///
///     w = 0    h=0: L · L      h=1: L · L^4 (u < 4), 1 (u = 4), nothing (u > 4)
///     w = 1    h=0: L · L^1    h=1: L
///     w = 2    h=0: L · L^2    h=1: L · L^3
///
/// 1/√8, the factor of L, is not a power of two: queries have it rounded, by 1e-4 of itself in half and in bfloat16.
/// φ(q)·φ(k) = 1 + (q/√8)·k + Σ_{i<j} (q_i q_j/8)(k_i k_j) + Σ_i (q_i²/16) k_i².
struct HopperPacking8 : HopperRows<8> {
  static constexpr int row_tiles = 1;
  static constexpr int rows = 48;
  static constexpr int constant_tile = 0;
  static constexpr int constant_row = 4;

  /// What row 16w + 8h + u holds.
  JRT_DETAIL_HD static constexpr TaylorRow row(int /*m*/, int w, int h, int u) {
    if (w == 0 && h == 1) {
      return u < 4 ? TaylorRow{u, input(0, u, 4)} : (u == constant_row ? TaylorRow{} : nothing());
    }
    if (w == 1 && h == 1) {
      return {u, -1};
    }
    return w < 3 ? TaylorRow{u, input(0, u, w + (w == 2 ? h : 0))} : nothing();
  }
};

}  // namespace jrt::detail
