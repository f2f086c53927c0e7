// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <jrt/detail/cuda/core/sm90/instructions.cuh>
#include <jrt/detail/cuda/core/sm90/numbers.cuh>
#include <jrt/numeric.hpp>

#include "jrt_lm/tile_copies.cuh"
#include "jrt_lm/tiled_block.cuh"
#include "jrt_lm/tiled_job.cuh"

namespace jrt_lm {

/// A warp's 16 rows of a tile, and what all ways of finishing their sums have in common. Lane 4 g + c has rows g and g + 8,
/// and columns 8 j + 2 c and the next.
///
/// A norm before the product is a factor of each row, from the row's squares, which whoever wrote it has summed in parts.
template <class T>
class TiledRows {
 public:
  /// What is on the way to y is in shared memory until then.
  __device__ void end() const { jrt::detail::cuda::await_stores_read(); }

 protected:
  using Pair = jrt::detail::cuda::Pair;
  static constexpr int box_bytes = 16 * 128;
  struct Two {
    float first;
    float second;
  };

  __device__ TiledRows(const TiledJob& job, const TiledBlock<T>& block, int group)
      : job_(job),
        block_(block),
        group_(group),
        thread_(static_cast<int>(threadIdx.x) % 128),
        warp_(jrt::detail::cuda::warp_uniform(thread_ / 32)),
        g_(thread_ % 32 / 4),
        c_(thread_ % 4),
        finishes_(T::splits == 1 || block.split == group),
        area_(T::splits == 1 ? group * 4 + warp_ : warp_),
        staged_(block.shared + static_cast<SharedAddress>(T::staged_at + area_ * T::staged_bytes)),
        addends_(block.shared + static_cast<SharedAddress>(T::addends_at + group * T::addend_bytes)) {}

  static __device__ __forceinline__ void store_number(SharedAddress to, float number) {
    asm volatile("st.shared.f32 [%0], %1;" : : "r"(to), "f"(number) : "memory");
  }
  static __device__ __forceinline__ void store_two(SharedAddress to, Two numbers) {
    asm volatile("st.shared.v2.f32 [%0], {%1,%2};" : : "r"(to), "f"(numbers.first), "f"(numbers.second) : "memory");
  }
  static __device__ __forceinline__ Two load_two(SharedAddress from) {
    Two numbers;
    asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(numbers.first), "=f"(numbers.second) : "r"(from) : "memory");
    return numbers;
  }

  __device__ void place(int row, int output) {
    row_ = row + warp_ * 16;
    output_ = output;
  }
  __device__ void group_barrier() const { jrt::detail::cuda::named_barrier(1 + group_, 128); }

  /// Puts the biases of the tile's columns, in the type Bias, into shared memory.
  template <class Bias>
  __device__ void load_biases() const {
    const auto* const biases = static_cast<const Bias*>(job_.bias);
    for (int i = thread_; i < T::columns; i += 128) {
      const int at = output_ + i % T::outputs;
      const bool is_there = biases != nullptr && at < job_.outputs;
      store_number(addend(i), is_there ? jrt::convert<float>(biases[i < T::outputs ? at : job_.outputs + at]) : 0.0F);
    }
  }
  /// Where number i of the tile's addends is.
  [[nodiscard]] __device__ SharedAddress addend(int i) const { return addends_ + static_cast<SharedAddress>(4 * i); }
  /// Those of columns 8 j + 2 c and the next, counted from number `first` on.
  [[nodiscard]] __device__ Two addends(int first, int j) const { return load_two(addend(first + 8 * j + 2 * c_)); }

  __device__ void load_factors() {
    for (int h = 0; h < 2; ++h) {
      factors_[h] = factor(row_ + 8 * h + g_);
    }
  }

  /// Numbers (row g, columns 2 c and 2 c + 1), (row g + 8, the same) of the 8 columns from 8 j on.
  __device__ __forceinline__ void scale(const float (&sums)[T::sums], int j, float (&numbers)[4]) const {
    const Two bias = addends(0, j);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      numbers[2 * h] = sums[4 * j + 2 * h] * factors_[h] + bias.first;
      numbers[2 * h + 1] = sums[4 * j + 2 * h + 1] * factors_[h] + bias.second;
    }
  }
  /// The same, rounded.
  static __device__ __forceinline__ Pair rounded(float first, float second) {
    return jrt::detail::cuda::HopperNumbers<jrt::BFloat16>::rounded(first, second);
  }
  static __device__ float silu(float x) {
    return __fdividef(x, 1.0F + __expf(-x));
  }

  /// Rounds 16 outputs of each row, from 8 j on, and puts them into the staged blocks.
  __device__ __forceinline__ void stage(int j, const float (&numbers)[2][4]) const {
    const int lane = thread_ % 32;
    const int chunk = j % 8 + lane / 16;  // of 16 bytes, in the rows of a block
    const SharedAddress to =
        staged_ + static_cast<SharedAddress>(j / 8 * box_bytes + lane % 16 * 128 + (chunk ^ (lane % 8)) * 16);
    jrt::detail::cuda::store_blocks(to, rounded(numbers[0][0], numbers[0][1]), rounded(numbers[0][2], numbers[0][3]),
                                    rounded(numbers[1][0], numbers[1][1]), rounded(numbers[1][2], numbers[1][3]));
  }
  /// Copies the staged blocks to y, from the tile's block `first` on.
  __device__ __forceinline__ void store_staged(int first) const {
    jrt::detail::cuda::async_proxy_fence();
    __syncwarp();
    for (int i = 0; i < T::staged_blocks; ++i) {
      store_box(job_.y, staged_ + static_cast<SharedAddress>(i * box_bytes), output_ + 64 * (first + i), row_);
    }
  }
  /// All outputs to y, of which `fill(j, at)` stages 16, from 8 j on, at 8 `at` of the staged blocks.
  template <class Fill>
  __device__ __forceinline__ void store_outputs(const Fill& fill) const {
#pragma unroll
    for (int block = 0; block < T::outputs / 64; block += T::staged_blocks) {
      jrt::detail::cuda::await_stores_read();
#pragma unroll
      for (int j = 0; j < T::staged_blocks * 8; j += 2) {
        fill(block * 8 + j, j);
      }
      store_staged(block);
      end_stores();
    }
  }

  /// Where a cluster has split the depth, each block finishes one group's rows, with the other block's sums of them; false
  /// for the other rows. A cluster has one tile.
  __device__ __forceinline__ bool joined(float (&sums)[T::sums]) const {
    using namespace jrt::detail::cuda;
    if constexpr (T::splits > 1) {
      const SharedAddress own = block_.shared + static_cast<SharedAddress>(T::exchange_at + thread_ * 16);
      if (!finishes_) {
        const SharedAddress to = address_in(group_, own);
#pragma unroll
        for (int i = 0; i < T::sums; i += 4) {
          store_in_cluster(to + static_cast<SharedAddress>(i * 512), sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
        }
        release_in_cluster(address_in(group_, block_.exchange_barrier()));
        return false;
      }
      wait_for_cluster(block_.exchange_barrier(), 0);
#pragma unroll
      for (int i = 0; i < T::sums; i += 2) {
        const Two others = load_two(own + static_cast<SharedAddress>(i / 4 * 2048 + i % 4 * 4));
        sums[i] += others.first;
        sums[i + 1] += others.second;
      }
    }
    return true;
  }

  const TiledJob& job_;
  const TiledBlock<T>& block_;
  int group_;
  int thread_;  // of the group
  int warp_;    // of the group
  int g_;
  int c_;
  bool finishes_;
  int area_;  // of shared memory that is a warp's own
  SharedAddress staged_;
  SharedAddress addends_;
  int row_ = 0;
  int output_ = 0;
  float factors_[2] = {1, 1};

 private:
  /// 1 / sqrt(mean of the row's squares + epsilon).
  [[nodiscard]] __device__ float factor(int row) const {
    if (job_.squares == nullptr || row >= job_.rows) {
      return 1;
    }
    const float* const parts = job_.squares + static_cast<std::int64_t>(row) * job_.square_parts;
    float sum = 0;
    for (int i = 0; i < job_.square_parts; ++i) {
      sum += parts[i];
    }
    return rsqrtf(sum * job_.per_width + job_.epsilon);
  }
};

}  // namespace jrt_lm
