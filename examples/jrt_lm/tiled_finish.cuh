// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <jrt/detail/cuda/core/sm90/instructions.cuh>
#include <jrt/numeric.hpp>

#include "jrt_lm/tiled_convolution.cuh"
#include "jrt_lm/tiled_rotation.cuh"
#include "jrt_lm/tiled_rows.cuh"

namespace jrt_lm {

/// y = sums, or gated ones.
template <class T>
class TiledStores : public TiledRows<T> {
  using Rows = TiledRows<T>;

 public:
  __device__ TiledStores(const TiledJob& job, const TiledBlock<T>& block, int group) : Rows(job, block, group) {}

  /// Before a tile is multiplied, of which `row` is the first of the group's 64: loads what no kernel writes.
  __device__ void prepare(int row, int output) {
    this->place(row, output);
    if (this->finishes_) {
      this->group_barrier();  // the tile before has been finished
      this->template load_biases<jrt::BFloat16>();
      this->group_barrier();
    }
  }
  /// Then what the kernel before has written.
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
      float numbers[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        this->scale(sums, j + i, numbers[i]);
        if constexpr (T::finish == Finish::gates) {
          float gates[4];
          this->scale(sums, j + i + T::outputs / 8, gates);
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            numbers[i][n] *= Rows::silu(gates[n]);
          }
        }
      }
      this->stage(at, numbers);
    });
  }
};

/// The residual stream += sums. For the norm behind, the new rows times its weights go to y, and their squares are summed
/// over the tile's columns.
template <class T>
class TiledAddition : public TiledRows<T> {
  using Rows = TiledRows<T>;
  using typename Rows::Two;

 public:
  __device__ TiledAddition(const TiledJob& job, const TiledBlock<T>& block, int group)
      : Rows(job, block, group),
        stream_(block.shared + static_cast<SharedAddress>(T::stream_at + this->area_ * T::stream_bytes)) {}

  __device__ void prepare(int row, int output) {
    this->place(row, output);
    if (this->finishes_) {
      this->group_barrier();
      this->template load_biases<float>();
      for (int i = this->thread_; i < T::columns; i += 128) {
        const bool is_there = this->job_.norm_weight != nullptr && output + i < this->job_.outputs;
        Rows::store_number(this->addend(T::columns + i), is_there ? this->job_.norm_weight[output + i] : 0);
      }
      this->group_barrier();
    }
  }
  __device__ void begin() {
    using namespace jrt::detail::cuda;
    if (this->finishes_) {
      await_stores_read();
      barrier_expect(this->block_.stream_barrier(this->area_), T::stream_bytes);
      for (int i = 0; i < T::outputs / 32; ++i) {
        load_box(box(i), this->job_.stream, this->output_ + 32 * i, this->row_, this->block_.stream_barrier(this->area_));
      }
    }
  }
  __device__ __forceinline__ void run(float (&sums)[T::sums]) {
    using namespace jrt::detail::cuda;
    if (!this->joined(sums)) {
      return;
    }
    barrier_wait(this->block_.stream_barrier(this->area_), round_);
    round_ ^= 1;
    float squares[2] = {};
#pragma unroll
    for (int j = 0; j < T::outputs / 8; j += 2) {
      float scaled[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Two bias = this->addends(0, j + i);
        const Two weight = this->addends(T::columns, j + i);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int chunk = (j + i) % 4 * 2 + this->c_ / 2;
          const SharedAddress at =
              box((j + i) / 4) +
              static_cast<SharedAddress>((8 * h + this->g_) * 128 + (chunk ^ this->g_) * 16 + this->c_ % 2 * 8);
          Two x = Rows::load_two(at);
          x.first += sums[4 * (j + i) + 2 * h] + bias.first;
          x.second += sums[4 * (j + i) + 2 * h + 1] + bias.second;
          Rows::store_two(at, x);
          squares[h] += x.first * x.first;
          squares[h] += x.second * x.second;
          scaled[i][2 * h] = x.first * weight.first;
          scaled[i][2 * h + 1] = x.second * weight.second;
        }
      }
      this->stage(j, scaled);
    }
    async_proxy_fence();
    __syncwarp();
    for (int i = 0; i < T::outputs / 32; ++i) {
      store_box(this->job_.stream, box(i), this->output_ + 32 * i, this->row_);
    }
    if (this->job_.norm_weight != nullptr) {
      this->store_staged(0);
      leave(squares);
    }
    end_stores();
  }

 private:
  static_assert(T::staged_blocks * 64 == T::outputs || T::finish != Finish::adds);

  /// 16 rows of 32 numbers.
  [[nodiscard]] __device__ SharedAddress box(int i) const {
    return stream_ + static_cast<SharedAddress>(i * Rows::box_bytes);
  }
  __device__ __forceinline__ void leave(float (&squares)[2]) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      squares[h] += __shfl_xor_sync(~0U, squares[h], 1);
      squares[h] += __shfl_xor_sync(~0U, squares[h], 2);
      const int row = this->row_ + 8 * h + this->g_;
      if (this->c_ == 0 && row < this->job_.rows) {
        const int tiles = (this->job_.outputs + T::outputs - 1) / T::outputs;
        this->job_.new_squares[static_cast<std::int64_t>(row) * tiles + this->output_ / T::outputs] = squares[h];
      }
    }
  }

  SharedAddress stream_;
  std::uint32_t round_ = 0;
};

/// What a warp does with the sums of a tile.
template <class T, Finish finish = T::finish>
struct TiledFinishOf {
  using type = TiledStores<T>;
};
template <class T>
struct TiledFinishOf<T, Finish::adds> {
  using type = TiledAddition<T>;
};
template <class T>
struct TiledFinishOf<T, Finish::rotates> {
  using type = TiledRotation<T>;
};
template <class T>
struct TiledFinishOf<T, Finish::convolves> {
  using type = TiledConvolution<T>;
};
template <class T>
using TiledFinish = typename TiledFinishOf<T>::type;

}  // namespace jrt_lm
