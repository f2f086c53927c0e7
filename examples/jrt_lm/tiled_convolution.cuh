// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <jrt/detail/cuda/core/sm90/instructions.cuh>
#include <jrt/numeric.hpp>

#include "jrt_lm/tiled_rows.cuh"

namespace jrt_lm {

/// y = silu(convolution of the sums over the rows) gates. Inputs of rows above come from other lanes, those of the warp
/// above through shared memory. Those of the tile above are not there: what is needed for a tile's first rows is left in
/// memory (convolved_tiles.cuh), and what is written there now is wrong.
template <class T>
class TiledConvolution : public TiledRows<T> {
  using Rows = TiledRows<T>;
  using typename Rows::Pair;
  using typename Rows::Two;
  static constexpr int carried = tiled_taps - 1;
  static constexpr int pairs = T::outputs / 8;
  static_assert(T::splits == 1);

 public:
  __device__ TiledConvolution(const TiledJob& job, const TiledBlock<T>& block, int group) : Rows(job, block, group) {}

  __device__ void prepare(int row, int output) {
    this->place(row, output);
    this->group_barrier();
    this->template load_biases<jrt::BFloat16>();
    for (int i = this->thread_; i < T::outputs; i += 128) {
      const int at = output + i;
      const bool is_there = at < this->job_.outputs;
      const bool is_biased = is_there && this->job_.filter_bias != nullptr;
      Rows::store_number(this->addend(T::columns + i), is_biased ? jrt::convert<float>(this->job_.filter_bias[at]) : 0.0F);
      for (int k = 0; k < tiled_taps; ++k) {
        Rows::store_number(
            this->addend(T::columns + (1 + k) * T::outputs + i),
            is_there ? jrt::convert<float>(this->job_.filter[static_cast<std::int64_t>(at) * tiled_taps + k]) : 0.0F);
      }
    }
    row_count_ = *this->job_.row_count;
    this->group_barrier();
  }
  __device__ void begin() { this->load_factors(); }

  __device__ __forceinline__ void run(const float (&sums)[T::sums]) {
    round_ ^= 1;
    keep_inputs(sums);
    this->store_outputs([&](int j, int at) {
      float numbers[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        convolve(sums, j + i, numbers[i]);
      }
      this->stage(at, numbers);
    });
  }

 private:
  [[nodiscard]] __device__ int warp_of_block() const {
    return this->group_ * 4 + this->warp_;
  }
  /// Where the last inputs of a warp of the block are kept, of which k = 0 is the first.
  [[nodiscard]] __device__ SharedAddress edge(int warp, int k, int j) const {
    const int row = (static_cast<int>(round_) * 8 + warp) * carried + k;
    return this->block_.shared + static_cast<SharedAddress>(T::edges_at + (row * T::outputs + 8 * j + 2 * this->c_) * 2);
  }
  /// Leaves numbers of an edge row in memory; `what` is 0 for first inputs, 1 for first gates, 2 for last inputs.
  __device__ void leave(int what, int k, int j, Pair pair) const {
    const std::int64_t row = (static_cast<std::int64_t>(this->row_ / tile_rows) * 3 + what) * carried + k;
    store(this->job_.edges + row * this->job_.outputs, j, pair);
  }
  __device__ void store(jrt::BFloat16* row, int j, Pair pair) const {
    const int column = this->output_ + 8 * j + 2 * this->c_;
    if (column < this->job_.outputs && this->row_ < this->job_.rows) {
      *reinterpret_cast<Pair*>(row + column) = pair;
    }
  }

  /// Rounds all inputs, as they would be between two kernels, and shows the last ones to the warp below.
  __device__ __forceinline__ void keep_inputs(const float (&sums)[T::sums]) {
    const int from_end = this->g_ - (8 - carried);
#pragma unroll
    for (int j = 0; j < pairs; ++j) {
      float numbers[4];
      this->scale(sums, j, numbers);
      inputs_[j][0] = Rows::rounded(numbers[0], numbers[1]);
      inputs_[j][1] = Rows::rounded(numbers[2], numbers[3]);
      if (from_end >= 0) {
        asm volatile("st.shared.b32 [%0], %1;" : : "r"(edge(warp_of_block(), from_end, j)), "r"(inputs_[j][1]) : "memory");
        if (warp_of_block() == 7) {
          leave(2, from_end, j, inputs_[j][1]);
        }
      }
      if (warp_of_block() == 0 && this->g_ < carried) {
        leave(0, this->g_, j, inputs_[j][0]);
        this->scale(sums, j + pairs, numbers);
        leave(1, this->g_, j, Rows::rounded(numbers[0], numbers[1]));
      }
    }
    if (this->row_<row_count_&& this->row_ + 16> row_count_ - carried) {
#pragma unroll
      for (int j = 0; j < pairs; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int k = this->row_ + 8 * h + this->g_ - (row_count_ - carried);
          if (k >= 0 && k < carried) {
            store(this->job_.last_inputs + static_cast<std::int64_t>(k) * this->job_.outputs, j, inputs_[j][h]);
          }
        }
      }
    }
    jrt::detail::cuda::named_barrier(3, 256);
  }

  __device__ __forceinline__ void convolve(const float (&sums)[T::sums], int j, float (&numbers)[4]) const {
    const int lane = this->thread_ % 32;
    const Two bias = this->addends(T::columns, j);
    Two totals[2] = {bias, bias};
#pragma unroll
    for (int k = 0; k < tiled_taps; ++k) {
      const Two weight = this->addends(T::columns + (1 + k) * T::outputs, j);
      const int lag = carried - k;
      Pair inputs[2] = {inputs_[j][0], inputs_[j][1]};
      if (lag > 0) {
        const int from = (lane - 4 * lag) & 31;
        const Pair wrapping = this->g_ >= 8 - lag ? inputs_[j][0] : inputs_[j][1];
        inputs[0] = __shfl_sync(~0U, inputs_[j][0], from);
        inputs[1] = __shfl_sync(~0U, wrapping, from);
        if (this->g_ < lag) {
          inputs[0] = warp_of_block() == 0
                          ? 0
                          : jrt::detail::cuda::load_pair(edge(warp_of_block() - 1, this->g_ - lag + carried, j));
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        totals[h].first = fmaf(weight.first, __uint_as_float(inputs[h] << 16), totals[h].first);
        totals[h].second = fmaf(weight.second, __uint_as_float(inputs[h] & 0xffff0000U), totals[h].second);
      }
    }
    this->scale(sums, j + pairs, numbers);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      numbers[2 * h] *= Rows::silu(totals[h].first);
      numbers[2 * h + 1] *= Rows::silu(totals[h].second);
    }
  }

  std::uint32_t round_ = 0;
  int row_count_ = 0;
  Pair inputs_[pairs][2];
};

}  // namespace jrt_lm
