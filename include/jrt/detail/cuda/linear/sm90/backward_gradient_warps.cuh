// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/linear/sm90/backward_call.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_layout.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_rows.cuh"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// What the four warps of a block that make the gradients do alike in both passes: their order of chunks, and all copies,
/// which the first of them issues. Warp w has tokens 16w … 16w + 15 of a chunk as rows.
template <class Config, BackwardPass pass>
class GradientWarps {
 public:
  using Call = HopperBackwardCall<Config>;
  using Layout = BackwardLayout<Config, pass>;
  using Schedule = BackwardSchedule<Config, pass>;
  using Rows = BackwardRows<Config>;

  __device__ GradientWarps(const Call& call, const Schedule& schedule)
      : call_(call), schedule_(schedule), rows_(warp_uniform(static_cast<int>(threadIdx.x) / 32 % 4)) {}

  /// Issues the first copies, and those of chunks that are only summed, during which these warps are otherwise idle.
  __device__ void start_copies() const {
    if (rows_.warp() != 0) {
      return;
    }
    const int summed = schedule_.encoder_chunks();
    const int chunks = summed + schedule_.own_chunks();
#pragma unroll 1
    for (int i = 0; i < summed + Layout::stages && i < chunks; ++i) {
      if (i >= Layout::stages) {
        barrier_wait(Layout::summed_free + 8 * (i % Layout::stages), (i / Layout::stages - 1) % 2);
      }
      schedule_.load(call_.maps, i);
    }
  }

 protected:
  /// Where the block's chunk i, its n-th with gradients, is.
  struct Tiles {
    int n;
    int i;
    int stage;
    int chunk;  // of the block's own tokens
    int buffer;
    SharedAddress summed;  // inputs that enter the state
    SharedAddress value;   // and their values
    SharedAddress x;       // inputs that get gradients
    SharedAddress y;       // and their values
    SharedAddress state;

    __device__ Tiles(const Schedule& schedule, int number)
        : n(number),
          i(schedule.encoder_chunks() + n),
          stage(i % Layout::stages),
          chunk(schedule.own_chunk(n)),
          buffer(n % 2),
          summed(Layout::inputs + stage * Layout::input_tile),
          value(Layout::values + stage * Layout::value_tile),
          x(Layout::row_inputs + stage * Layout::input_tile),
          y(Layout::row_values + stage * Layout::value_tile),
          state(Layout::states + buffer * PublishedState::bytes) {}
  };

  static __device__ unsigned lane() {
    return computed_afresh(threadIdx.x % 32);
  }

  /// Calls `step(tiles)` for each chunk of the block's own tokens.
  template <class Step>
  __device__ void for_chunks(const Step& step) const {
    const int chunks = schedule_.own_chunks();
    if (chunks == 0) {
      return;
    }
    // Not earlier: until the state is published, the barriers of stages are in phases of chunks that are only summed.
    barrier_wait(Layout::state_full, 0);
#pragma unroll 1
    for (int n = 0; n < chunks; ++n) {
      step(Tiles(schedule_, n));
    }
  }

  __device__ void await_state(const Tiles& tiles) const {
    barrier_wait(Layout::state_full + 8 * tiles.buffer, tiles.n / 2 % 2);
  }
  __device__ void await_tiles(const Tiles& tiles) const {
    barrier_wait(Layout::full + 8 * tiles.stage, tiles.i / Layout::stages % 2);
  }

  /// Called when the state of this chunk is published, so that the state warps are done with the chunk before: waits until
  /// these warps are, too, and issues the next load into its stage.
  __device__ void issue_next_load(const Tiles& tiles) const {
    const int before = tiles.n - 1;
    const int next = before + Layout::stages;
    if (rows_.warp() == 0 && before >= 0 && next < schedule_.own_chunks()) {
      barrier_wait(Layout::state_free + 8 * (before % 2), before / 2 % 2);
      if constexpr (!Layout::queries) {
        barrier_wait(Layout::stored, before % 2);
      }
      schedule_.load_own(call_.maps, tiles.i - 1 + Layout::stages, next);
    }
    __syncwarp();
  }

  /// The chunk's first token in gradients of inputs, which have a row for each sliced head.
  [[nodiscard]] __device__ TileCoordinates place(const Tiles& tiles) const {
    return {0, first_row(tiles), schedule_.head * Layout::slices + schedule_.slice, schedule_.own.row};
  }
  /// The same in gradients of values, which have a row for each query head.
  [[nodiscard]] __device__ TileCoordinates value_place(const Tiles& tiles) const {
    return {schedule_.column(), first_row(tiles), schedule_.head, schedule_.own.row};
  }
  /// Negative where delayed keys are no token's.
  [[nodiscard]] __device__ int first_row(const Tiles& tiles) const {
    return schedule_.own.first + tiles.chunk * Layout::chunk - (Layout::queries ? 0 : Schedule::delay);
  }

  /// Which of 16 columns, k of the chunk's four times 16, this warp's rows see: all (columns before the rows in pass
  /// `queries`, after them in `keys`), those up to the diagonal, or none.
  [[nodiscard]] __device__ bool sees_all(int k) const {
    return Layout::queries ? k < rows_.warp() : k > rows_.warp();
  }
  [[nodiscard]] __device__ bool sees_none(int k) const {
    return Layout::queries ? k > rows_.warp() : k < rows_.warp();
  }

  /// The bits of this lane's pair in a block of 8 x 8 on the diagonal.
  static __device__ Pair diagonal_bits() {
    const unsigned own = lane();
    const unsigned row = own / 4;
    const unsigned column = own % 4 * 2;
    const auto sees = [&](unsigned c) { return Layout::queries ? c <= row : c >= row; };
    return (sees(column) ? 0xffffU : 0U) | (sees(column + 1) ? 0xffff0000U : 0U);
  }
  /// Zeroes the bits of pairs that do not see each other.
  __device__ void mask(LeftFragment& weights, int k, Pair diagonal) const {
    const Pair bits = sees_all(k) ? ~0U : diagonal;
    weights.pairs[0] &= bits;
    weights.pairs[3] &= bits;
    // Of rows 8-15 with columns 0-7, and rows 0-7 with columns 8-15, one is before the other.
    Pair& hidden = weights.pairs[Layout::queries ? 2 : 1];
    hidden = sees_all(k) ? hidden : 0;
  }
  static __device__ void clear(LeftFragment& weights) {
#pragma unroll
    for (Pair& pair : weights.pairs) {
      pair = 0;
    }
  }

  static __device__ float2 load_floats(SharedAddress from) {
    float2 pair;
    asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(from) : "memory");
    return pair;
  }

  const Call& call_;
  const Schedule& schedule_;
  Rows rows_;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
