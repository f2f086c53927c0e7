// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <jrt/numeric.hpp>
#include <jrt/policy/rotary.hpp>

#include "jrt_lm/tiled_rows.cuh"

namespace jrt_lm {

/// y = sums, in heads of 64 outputs whose number i turns with number i + 32, which the same lane has. Angles are there
/// before the product is.
template <class T>
class TiledRotation : public TiledRows<T> {
  using Rows = TiledRows<T>;

 public:
  __device__ TiledRotation(const TiledJob& job, const TiledBlock<T>& block, int group) : Rows(job, block, group) {}

  __device__ void prepare(int row, int output) {
    this->place(row, output);
    if (!this->finishes_) {
      return;
    }
    this->group_barrier();
    this->template load_biases<jrt::BFloat16>();
    this->group_barrier();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int its_row = this->row_ + 8 * h + this->g_;
      const std::uint64_t position =
          its_row < this->job_.rows ? static_cast<std::uint64_t>(this->job_.positions[its_row]) : 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const std::uint64_t phase = position * this->job_.turns[i / 2 * 8 + 2 * this->c_ + i % 2];
        sincospif(jrt::RotaryHalves<64>::half_turns<float>(phase), &turns_[h][i].sine, &turns_[h][i].cosine);
      }
    }
  }
  __device__ void begin() {
    if (this->finishes_) {
      this->load_factors();
    }
  }
  __device__ __forceinline__ void run(float (&sums)[T::sums]) const {
    if (!this->joined(sums)) {
      return;
    }
    this->store_outputs([&](int j, int at) {
      if (j % 8 >= 4) {
        return;  // staged with the first half of the head
      }
      const bool turned = this->output_ / 64 + j / 8 < this->job_.turned_heads;
      float low[2][4];
      float high[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        this->scale(sums, j + i, low[i]);
        this->scale(sums, j + i + 4, high[i]);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const jrt::Rotation<float> turn = turned ? turns_[n / 2][2 * (j % 8 + i) + n % 2] : jrt::Rotation<float>{1, 0};
          const float a = low[i][n];
          const float b = high[i][n];
          low[i][n] = a * turn.cosine - b * turn.sine;
          high[i][n] = a * turn.sine + b * turn.cosine;
        }
      }
      this->stage(at, low);
      this->stage(at + 4, high);
    });
  }

 private:
  jrt::Rotation<float> turns_[2][8];
};

}  // namespace jrt_lm
