// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <jrt/detail/cuda/core/sm90/instructions.cuh>

#include "jrt_lm/skinny_product.cuh"
#include "jrt_lm/step_epilogue.cuh"

namespace jrt_lm {

/// Products y = epilogue(W x): each warp takes some columns of every piece of W and x, with mma.m16n8k16: 16 rows of W, 8
/// of x. A stage's first weights are in registers before x is there.
template <class Shape>
class StepProducts : protected StepEpilogues<Shape> {
 protected:
  using Epilogues = StepEpilogues<Shape>;
  using E = typename Epilogues::E;
  using Epilogues::Epilogues;
  static constexpr int row_blocks = Shape::row_blocks;

  template <StageKind kind>
  __device__ void product(const Stage& stage) {
    constexpr bool normed = kind != StageKind::adds;
    constexpr int P = Shape::pieces(kind);
    constexpr int parts = tile_parts(kind);
    constexpr int tiles = Shape::tiles_at_once(kind);
    constexpr int pairs = parts * tiles / 2;
    // Independent sums of a tile, so that fewer instructions wait for one another; the same for any number of rows.
    constexpr int chains = kind == StageKind::adds ? 4 : 2;
    constexpr int at_once = Shape::pieces_at_once(kind);
    int first = stage.first_tile;
    if (first >= stage.tiles) {
      return;
    }
    constexpr int x_pieces = Shape::x_pieces(kind);
    uint4 x[x_pieces][warp_chunks][row_blocks];
    // With several rows, or wide normed ones, it would take long to ask for all of x in vain: a part of it is asked for
    // until it is there.
    const bool asks = (!normed || !Shape::wide) && this->in_.rows < gated_rows;
    const auto ask = [asks](uint4& words, const auto* from, bool is_there) {
      words = load_exchanged_if(is_there && asks, from, is_there ? ~0U : 0U);
    };
    each_of_x(stage, 0, x, ask);
    uint4 squares[normed ? P * warp_chunks / 4 + (P * warp_chunks % 4 != 0) : 1][row_blocks];
    if constexpr (normed) {
      each_of_squares(stage, squares, ask);
    }
    for (int round = 0; first < stage.tiles; ++round) {
      int present = parts;
#pragma unroll
      for (int i = 1; i < tiles; ++i) {
        present += first + i * this->blocks_ < stage.tiles ? parts : 0;
      }
      StepAddends<Shape, kind> own;
      if constexpr (is_prepared(kind)) {
        own = this->template take_addends<kind>();
      }
      float sums[pairs][row_blocks][chains][4] = {};
#pragma unroll
      for (int begin = 0; begin < P; begin += at_once) {
        uint4 w[2 * pairs][at_once][warp_chunks];
        load_weights(stage.in, begin, present, w);
        if (begin % x_pieces == 0 && (round == 0 || x_pieces < P)) {
          if (x_pieces < P && (round > 0 || begin > 0)) {
            each_of_x(stage, begin, x, [](uint4& words, const E* /*from*/, bool is_there) { forget(words, is_there); });
          }
          await_x<normed>(stage, begin, asks && begin == 0, x, squares);
        }
        if (stage.in >= (begin + at_once) * piece_columns) {
          multiply<true>(stage.in, begin, begin % x_pieces, x, w, sums);
        } else {
          multiply<false>(stage.in, begin, begin % x_pieces, x, w, sums);
        }
      }
      store_sums(sums);
      if (normed && round == 0) {
        await_squares(stage, squares);
      }
      this->sync();
      this->finish(stage, first, round, own);
      this->buffer_ ^= 1;
      first += tiles * this->blocks_;
    }
    this->clock_.note_waiting(this->stage_, StepMoment::waits_for_weights);
  }

 private:
  [[nodiscard]] __device__ int own_column(int piece, int chunk) const {
    return piece * piece_columns + (chunk * step_warps + this->warp()) * chunk_columns + this->lane() % 4 * 8;
  }

  /// Whether this warp has columns of a chunk of a piece.
  [[nodiscard]] __device__ bool has_chunk(int in, int piece, int chunk) const {
    return piece * piece_columns + (chunk * step_warps + this->warp()) * chunk_columns < in;
  }

  /// What is to be asked for.
  static __device__ void forget(uint4& words, bool is_there) {
    const std::uint32_t bits = is_there ? ~0U : 0U;
    words = {bits, bits, bits, bits};
  }
  /// Calls `function` for this lane's numbers of x, from piece `begin` on: a row of each eight, 8 columns of each chunk.
  template <int P, class Function>
  __device__ void each_of_x(const Stage& stage, int begin, uint4 (&x)[P][warp_chunks][row_blocks],
                            const Function& function) const {
    const int g = this->lane() / 4;
    const E* const from = this->template exchanged<const E>(stage.x) + g * stage.x_columns;
#pragma unroll
    for (int p = 0; p < P; ++p) {
#pragma unroll
      for (int j = 0; j < warp_chunks; ++j) {
        const int column = own_column(begin + p, j);
#pragma unroll
        for (int b = 0; b < row_blocks; ++b) {
          function(x[p][j][b], from + b * 8 * stage.x_columns + column, column < stage.in && g + 8 * b < this->in_.rows);
        }
      }
    }
  }
  /// Squares are asked for with x, but not waited for.
  template <bool normed, int P, int n>
  __device__ void await_x(const Stage& stage, int begin, bool asks, uint4 (&x)[P][warp_chunks][row_blocks],
                          uint4 (&squares)[n][row_blocks]) {
    this->clock_.note_waiting(this->stage_, StepMoment::waited_before);
    this->clock_.note(this->stage_, StepMoment::awaits);
    if (!asks) {
      const E* const from =
          this->template exchanged<const E>(stage.x) + this->lane() / 4 * stage.x_columns + own_column(begin, 0);
      while (is_absent16(x[0][0][0])) {
        x[0][0][0] = load_exchanged(from);
      }
      __syncwarp();
    }
    bool again = true;
    while (__any_sync(~0U, again)) {
      again = false;
      each_of_x(stage, begin, x, [&](uint4& words, const E* from, bool /*is_there*/) {
        const bool absent = is_absent16(words);
        reload_exchanged_if(absent, from, words);
        again = again || absent;
      });
      if constexpr (normed) {
        each_of_squares(stage, squares, [](uint4& words, const float* from, bool /*is_there*/) {
          reload_exchanged_if(is_absent32(words), from, words);
        });
      }
    }
    this->clock_.note(this->stage_, StepMoment::passes);
  }

  /// Likewise for the squares that belong to a warp's columns of x: of a row of each eight, of one of four chunks.
  template <int n, class Function>
  __device__ void each_of_squares(const Stage& stage, uint4 (&squares)[n][row_blocks], const Function& function) const {
    const int g = this->lane() / 4;
    const int columns = stage.in / tile_outputs;
    const float* const from = this->template exchanged<const float>(stage.x_squares) + g * columns;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const int chunk = 4 * i + this->lane() % 4;
      const int column =
          chunk / warp_chunks * piece_columns + (chunk % warp_chunks * step_warps + this->warp()) * chunk_columns;
#pragma unroll
      for (int b = 0; b < row_blocks; ++b) {
        function(squares[i][b], from + b * 8 * columns + column / tile_outputs,
                 column < stage.in && g + 8 * b < this->in_.rows);
      }
    }
  }
  template <int n>
  __device__ void await_squares(const Stage& stage, uint4 (&squares)[n][row_blocks]) {
    bool again = true;
    while (__any_sync(~0U, again)) {
      again = false;
      each_of_squares(stage, squares, [&](uint4& words, const float* from, bool /*is_there*/) {
        const bool absent = is_absent32(words);
        reload_exchanged_if(absent, from, words);
        again = again || absent;
      });
    }
#pragma unroll
    for (int b = 0; b < row_blocks; ++b) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const uint4& w = squares[i][b];
        sum += (__uint_as_float(w.x) + __uint_as_float(w.y)) + (__uint_as_float(w.z) + __uint_as_float(w.w));
      }
      sum += __shfl_xor_sync(~0U, sum, 1);
      sum += __shfl_xor_sync(~0U, sum, 2);
      if (this->lane() % 4 == 0) {
        this->sums().squares[this->squares_buffer()][this->warp()][8 * b + this->lane() / 4] = sum;
      }
    }
  }

  /// The next pieces in the ring: `begin` and some more of `present` tiles. Where there are none, numbers are of no
  /// meaning: they are not multiplied, or their sums are no tile's. A slot is passed on when all its numbers are in
  /// registers: the copy engine does not wait for loads that are on their way, and the compiler may reorder them.
  template <int parts, int at_once>
  __device__ void load_weights(int in, int begin, int present, uint4 (&w)[parts][at_once][warp_chunks]) {
    using namespace jrt::detail::cuda;
    constexpr RingBatch batch = ring_batch(parts, at_once);
    const auto offset = static_cast<unsigned>(this->lane() / 4 * row_stride(at_once) + this->warp() * chunk_columns * 2 +
                                              this->lane() % 4 * 16);
    const int pieces = pieces_of(in) - begin;
#pragma unroll
    for (int slot = 0; slot < batch.slots(); ++slot) {
      const bool is_there = batch.has(slot, present, pieces);
      if (is_there) {
        this->clock_.start_waiting();
        barrier_wait(this->full(this->place_.slot), this->place_.round);
        this->clock_.stop_waiting();
      }
      const std::uint32_t from = this->weights(this->place_.slot) + offset;
      std::uint32_t loaded = 0;
      constexpr auto lesser = [](int one, int other) { return one < other ? one : other; };
#pragma unroll
      for (int number = slot * slot_pieces; number < lesser((slot + 1) * slot_pieces, parts * at_once); ++number) {
#pragma unroll
        for (int j = 0; j < warp_chunks; ++j) {
          uint4& words = w[batch.part(number)][batch.piece(number)][j];
          words = load_shared(
              from + static_cast<unsigned>(batch.part(number % slot_pieces) * tile_outputs * row_stride(at_once) +
                                           batch.piece(number) * piece_columns * 2 + j * step_warps * chunk_columns * 2));
          loaded |= words.w;
        }
      }
      if (is_there) {
        barrier_arrive(this->after(loaded, this->empty(this->place_.slot)));
        this->place_.advance(this->parameters_.ring_slots);
      }
    }
  }

  /// sums += W x, where there is W; `all`: without a look. Lanes have 8 columns of a chunk, which the instruction takes for
  /// 2 and 2 of its 16: x has them likewise.
  template <bool all, int P, int sets, int pairs, int chains, int at_once>
  __device__ void multiply(int in, int begin, int of_x, const uint4 (&x)[P][warp_chunks][row_blocks],
                           const uint4 (&w)[sets][at_once][warp_chunks],
                           float (&sums)[pairs][row_blocks][chains][4]) const {
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      if (of_x + i >= P) {
        break;
      }
#pragma unroll
      for (int j = 0; j < warp_chunks; ++j) {
        if (!all && !has_chunk(in, begin + i, j)) {
          continue;
        }
        constexpr int more = chains / 2;
        const int chain = 2 * (j % more);
#pragma unroll
        for (int b = 0; b < row_blocks; ++b) {
          const uint4& numbers = x[of_x + i][j][b];
#pragma unroll
          for (int pair = 0; pair < pairs; ++pair) {
            const uint4& first = w[2 * pair][i][j];
            const uint4& second = w[2 * pair + 1][i][j];
            const std::uint32_t low[4] = {first.x, second.x, first.y, second.y};
            const std::uint32_t high[4] = {first.z, second.z, first.w, second.w};
            multiply_fragments<E>(sums[pair][b][chain], low, numbers.x, numbers.y);
            multiply_fragments<E>(sums[pair][b][chain + 1], high, numbers.z, numbers.w);
          }
        }
      }
    }
  }

  template <int pairs, int chains>
  __device__ void store_sums(const float (&sums)[pairs][row_blocks][chains][4]) const {
    const int g = this->lane() / 4;
    const int row = this->lane() % 4 * 2;
    auto& partial = this->sums().partial[this->buffer_];
#pragma unroll
    for (int pair = 0; pair < pairs; ++pair) {
#pragma unroll
      for (int b = 0; b < row_blocks; ++b) {
        float total[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          total[n] = sums[pair][b][0][n] + sums[pair][b][1][n];
          if constexpr (chains == 4) {
            total[n] += sums[pair][b][2][n] + sums[pair][b][3][n];
          }
        }
        if (8 * b + row < this->in_.rows) {
          *reinterpret_cast<float2*>(&partial[2 * pair][this->warp()][b][g][row]) = {total[0], total[1]};
          *reinterpret_cast<float2*>(&partial[2 * pair + 1][this->warp()][b][g][row]) = {total[2], total[3]};
        }
      }
    }
  }
};

}  // namespace jrt_lm
