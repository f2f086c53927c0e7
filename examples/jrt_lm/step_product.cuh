// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <jrt/detail/cuda/core/sm90/instructions.cuh>

#include "jrt_lm/skinny_product.cuh"
#include "jrt_lm/step_epilogue.cuh"

namespace jrt_lm {

/// Products y = epilogue(W x): each warp takes 32 columns of every piece of W and x, with mma.m16n8k16.
template <class Convolution, class Linear, class Window>
class StepProducts : protected StepEpilogues<Convolution, Linear, Window> {
 protected:
  using Epilogues = StepEpilogues<Convolution, Linear, Window>;
  using E = typename Epilogues::E;
  using Epilogues::Epilogues;

  template <StageKind kind>
  __device__ void normed_product(const Stage& stage) {
    product<kind, true, Epilogues::Block::normed_pieces>(stage);
  }
  __device__ void added_product(const Stage& stage) {
    if (stage.in <= Epilogues::Block::normed_pieces * piece_columns) {
      product<StageKind::adds, false, Epilogues::Block::normed_pieces>(stage);
    } else {
      product<StageKind::adds, false, 2 * Epilogues::Block::normed_pieces>(stage);
    }
  }

 private:
  /// This lane's numbers of x: rows g and g + 8, 8 columns of each piece.
  template <bool normed, int P>
  __device__ void load_rows(const Stage& stage, const float (&scales)[P][8], uint4 (&x)[P][2]) {
    const int g = this->lane() / 4;
    float squares[2] = {};
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const int column = own_column(p);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        x[p][half] = {};
        const int row = g + 8 * half;
        if (column < stage.in && row < this->in_.rows) {
          const int at = row * stage.x_columns + column;
          if constexpr (normed) {
            Packet<E> packet;
#pragma unroll
            for (int quarter = 0; quarter < 2; ++quarter) {
              const float4 four =
                  __ldcg(reinterpret_cast<const float4*>(static_cast<const float*>(stage.x) + at) + quarter);
              const float numbers[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
              for (int c = 0; c < 4; ++c) {
                squares[half] += numbers[c] * numbers[c];
                packet.values[4 * quarter + c] = jrt::convert<E>(numbers[c] * scales[p][4 * quarter + c]);
              }
            }
            x[p][half] = __builtin_bit_cast(uint4, packet);
          } else {
            x[p][half] = __ldcg(reinterpret_cast<const uint4*>(static_cast<const E*>(stage.x) + at));
          }
        }
      }
    }
    if constexpr (normed) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        squares[half] += __shfl_xor_sync(~0U, squares[half], 1);
        squares[half] += __shfl_xor_sync(~0U, squares[half], 2);
        if (this->lane() % 4 == 0) {
          this->sums_.squares[this->warp()][g + 8 * half] = squares[half];
        }
      }
    }
  }
  [[nodiscard]] __device__ int own_column(int p) const {
    return p * piece_columns + this->warp() * chunk_columns + this->lane() % 4 * 8;
  }

  /// sums += x Wᵀ over this warp's columns of the next tile in the ring. Low and high pairs have sums of their own where
  /// there are registers, so that fewer instructions wait for one another.
  template <int P, int chains>
  __device__ void multiply(int in, const uint4 (&x)[P][2], float (&sums)[chains][4]) {
    using namespace jrt::detail::cuda;
    constexpr int at_a_time = P < 4 ? P : 4;
    const auto offset =
        static_cast<unsigned>(this->lane() / 4 * piece_stride + this->warp() * chunk_columns * 2 + this->lane() % 4 * 16);
#pragma unroll
    for (int begin = 0; begin < P; begin += at_a_time) {
      uint4 w[at_a_time];
      const RingPlace first = this->place_;
#pragma unroll
      for (int i = 0; i < at_a_time; ++i) {
        if ((begin + i) * piece_columns < in) {
          this->clock_.start_waiting();
          barrier_wait(this->full(this->place_.slot), this->place_.round);
          this->clock_.stop_waiting();
          if (own_column(begin + i) < in) {
            w[i] = load_shared(this->piece(this->place_.slot) + offset);
          } else {
            w[i] = {};
          }
          this->place_.advance(this->parameters_.ring_slots);
        }
      }
      RingPlace done = first;
#pragma unroll
      for (int i = 0; i < at_a_time; ++i) {
        if ((begin + i) * piece_columns < in) {
          const uint4(&rows)[2] = x[begin + i];
          const std::uint32_t low[4] = {rows[0].x, rows[1].x, rows[0].y, rows[1].y};
          const std::uint32_t high[4] = {rows[0].z, rows[1].z, rows[0].w, rows[1].w};
          multiply_fragments<E>(sums[0], low, w[i].x, w[i].y);
          multiply_fragments<E>(sums[chains - 1], high, w[i].z, w[i].w);
          barrier_arrive(this->empty(done.slot));
          done.advance(this->parameters_.ring_slots);
        }
      }
    }
  }

  template <StageKind kind, bool normed, int P>
  __device__ void product(const Stage& stage) {
    constexpr int parts = tile_parts(kind);
    constexpr int chains = P <= 4 ? 2 : 1;
    const int in = stage.in;
    const int step = step_at_once / parts * this->blocks_;
    const int g = this->lane() / 4;
    const int c = this->lane() % 4;
    float scales[P][8];
    if constexpr (normed) {
#pragma unroll
      for (int p = 0; p < P; ++p) {
        if (own_column(p) < in) {
#pragma unroll
          for (int quarter = 0; quarter < 2; ++quarter) {
            const float4 four = __ldg(reinterpret_cast<const float4*>(stage.norm + own_column(p)) + quarter);
            scales[p][4 * quarter] = four.x;
            scales[p][4 * quarter + 1] = four.y;
            scales[p][4 * quarter + 2] = four.z;
            scales[p][4 * quarter + 3] = four.w;
          }
        }
      }
    }
    int first = first_tile(stage, this->block_, this->blocks_);
    typename Epilogues::template Epilogue<kind> own;
    this->prepare(stage, first, own);
    this->await_stages();
    this->load_residual(stage, own);
    uint4 x[P][2];
    load_rows<normed>(stage, scales, x);
    this->clock_.note(this->stage_, StepMoment::reads);
    if constexpr (kind == StageKind::logits) {
      this->best_ = {-INFINITY, INT32_MAX};
    }
    while (first < stage.tiles) {
      float sums[step_at_once][chains][4] = {};
#pragma unroll
      for (int i = 0; i < step_at_once; ++i) {
        if (first + i / parts * this->blocks_ < stage.tiles) {
          multiply(in, x, sums[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < step_at_once; ++i) {
        if constexpr (chains == 2) {
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            sums[i][0][n] += sums[i][1][n];
          }
        }
        float(&rows)[step_rows][tile_outputs] = this->sums_.partial[i][this->warp()];
        if (g < this->in_.rows) {
          *reinterpret_cast<float2*>(&rows[g][2 * c]) = {sums[i][0][0], sums[i][0][1]};
        }
        if (g + 8 < this->in_.rows) {
          *reinterpret_cast<float2*>(&rows[g + 8][2 * c]) = {sums[i][0][2], sums[i][0][3]};
        }
      }
      this->sync();
      this->finish(stage, own);
      first += step;
      if (first < stage.tiles) {
        this->prepare(stage, first, own);
        this->load_residual(stage, own);
        this->sync();
      }
    }
    this->clock_.note_waiting(this->stage_);
  }
};

}  // namespace jrt_lm
