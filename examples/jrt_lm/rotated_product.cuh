// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <jrt/numeric.hpp>
#include <jrt/policy/rotary.hpp>

#include "jrt_lm/skinny_product.cuh"

namespace jrt_lm {

/// The rotary embedding behind a product of few rows that makes queries, keys and values: a block has 8 numbers of the
/// first half of a head and those of the second that they turn with. Angles are there before the product is.
template <class E, int d>
struct RotationBehind {
  static constexpr int half = d / 2;
  static constexpr bool supported = half % skinny_outputs == 0;  ///< whether half a head is whole blocks of 8 outputs
  static constexpr int blocks_of_head = half / skinny_outputs;
  using Turn = jrt::Rotation<float>;

  jrt::RotaryHalves<d> rotary;
  const std::int32_t* positions;
  int rows;
  int heads;  ///< that are turned; those behind them are values

  [[nodiscard]] __device__ static int row() { return static_cast<int>(threadIdx.x) / skinny_outputs; }
  [[nodiscard]] __device__ static int column() { return static_cast<int>(threadIdx.x) % skinny_outputs; }

  __device__ static void place(int block, int& first, int& tile_stride) {
    first = block / blocks_of_head * d + block % blocks_of_head * skinny_outputs;
    tile_stride = half;
  }

  /// Positions are there before the first kernel of a step begins.
  [[nodiscard]] __device__ Turn prepare(int first) const {
    return row() < rows && first / d < heads ? rotary.template rotation<float>(positions[row()], first % d + column())
                                             : Turn{};
  }
  __device__ static void load(const Turn& /*own*/, int /*first*/) {}

  template <int most_rows>
  __device__ void run(const Turn& turn, int first, const E (&passed)[most_rows][2][skinny_outputs], E* y,
                      int y_columns) const {
    if (row() >= rows) {
      return;
    }
    E low = passed[row()][0][column()];
    E high = passed[row()][1][column()];
    if (first / d < heads) {
      const auto a = jrt::convert<float>(low);
      const auto b = jrt::convert<float>(high);
      low = jrt::convert<E>(a * turn.cosine - b * turn.sine);
      high = jrt::convert<E>(a * turn.sine + b * turn.cosine);
    }
    E* const to = y + std::int64_t{row()} * y_columns + first + column();
    to[0] = low;
    to[half] = high;
  }
};

}  // namespace jrt_lm
