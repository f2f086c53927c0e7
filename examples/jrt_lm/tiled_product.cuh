// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <jrt/detail/cuda/core/sm90/instructions.cuh>
#include <jrt/detail/cuda/core/sm90/product.cuh>
#include <jrt/detail/cuda/core/sm90/target.cuh>
#include <jrt/early_start.cuh>

#include "jrt_lm/tile_copies.cuh"
#include "jrt_lm/tile_product.cuh"
#include "jrt_lm/tiled_block.cuh"
#include "jrt_lm/tiled_finish.cuh"
#include "jrt_lm/tiled_job.cuh"

/// Matrix products of many rows on Hopper GPUs, in bfloat16 with sums in float. Persistent blocks take tile after tile; a
/// warp copies slots of a ring ahead (64 numbers of the rows of x and of W), two groups of four warps multiply 64 rows each
/// and finish their sums (tiled_finish.cuh) while the next tile's slots arrive.
///
///     copying warp  | W of the first slots | kernel before done | x of these | x and W of slot 5, 6 … | of the next tile …
///     ring          [ 128 rows of x, `columns` of W: 64 numbers each | … ]      as many slots as fit, 4 for 256 columns
///     2 groups      | biases, factors | slot 0 · slot 1 · … · slot in / 64 - 1  | finish, store | biases, factors | slot 0
///     …
///
/// No kernel writes weights: they are asked for before the kernel before is done.
namespace jrt_lm {

/// The tiles of a block, one after the other: down eight of them, then across, then down again, so that what is multiplied
/// at the same time shares rows of x and W.
template <class T>
class TileWalk {
 public:
  __device__ explicit TileWalk(const TiledJob& job)
      : down_(divided(job.rows, tile_rows)),
        across_(divided(job.outputs, T::outputs)),
        at_(static_cast<int>(blockIdx.x) / T::splits),
        step_(static_cast<int>(gridDim.x) / T::splits) {}

  [[nodiscard]] __device__ bool is_there() const { return at_ < down_ * across_; }
  __device__ void advance() { at_ += step_; }

  __device__ void place(int& row, int& output) const {
    constexpr int band = 8;
    const int first = at_ / (band * across_) * band;
    const int height = down_ - first < band ? down_ - first : band;
    const int in_band = at_ - first * across_;
    row = (first + in_band % height) * tile_rows;
    output = in_band / height * T::outputs;
  }

 private:
  static __device__ int divided(int a, int b) { return (a + b - 1) / b; }

  int down_;
  int across_;
  int at_;
  int step_;
};

/// A place in the ring.
template <class T>
struct TiledPlace {
  int slot = 0;
  std::uint32_t round = 0;

  __device__ void advance() {
    if (++slot == T::slots) {
      slot = 0;
      round ^= 1;
    }
  }
};

/// The copying warp.
template <class T>
class TiledCopier {
 public:
  __device__ TiledCopier(const TiledJob& job, const TiledBlock<T>& block) : job_(job), block_(block) {}

  __device__ void run() {
    using namespace jrt::detail::cuda;
    bool waited = false;
    for (TileWalk<T> walk(job_); walk.is_there(); walk.advance()) {
      walk.place(row_, output_);
      int ahead = 0;
      if (!waited) {  // weights first, which no kernel writes
        ahead = block_.slot_count < T::slots ? block_.slot_count : T::slots;
        for (int i = 0; i < ahead; ++i) {
          barrier_expect(block_.full(i), T::slot_bytes);
          copy_weights(i, i);
        }
        jrt::await_previous_kernel();
        waited = true;
        for (int i = 0; i < ahead; ++i) {
          copy_rows(i, i);
          place_.advance();
        }
      }
      for (int i = ahead; i < block_.slot_count; ++i) {
        barrier_wait(block_.empty(place_.slot), place_.round ^ 1);
        barrier_expect(block_.full(place_.slot), T::slot_bytes);
        copy_rows(place_.slot, i);
        copy_weights(place_.slot, i);
        place_.advance();
      }
    }
    if (!waited) {
      jrt::await_previous_kernel();
    }
  }

 private:
  /// Slot i of the depth to a slot of the ring.
  __device__ void copy_rows(int to, int i) const {
    load_box(block_.slot(to), job_.x, (block_.first_slot + i) * tile_depth, row_, block_.full(to));
  }
  __device__ void copy_weights(int to, int i) const {
    constexpr int half = T::columns / 2;
    const int column = (block_.first_slot + i) * tile_depth;
    const int next = has_gates<T::finish> ? job_.outputs : half;
    const SharedAddress at = block_.slot(to) + T::x_bytes;
    load_box(at, job_.weight, column, output_, block_.full(to));
    load_box(at + half * 128, job_.weight, column, output_ + next, block_.full(to));
  }

  const TiledJob& job_;
  const TiledBlock<T>& block_;
  TiledPlace<T> place_{};
  int row_ = 0;
  int output_ = 0;
};

/// A multiplying warp.
template <class T>
__device__ __forceinline__ void multiply_tiles(const TiledJob& job, const TiledBlock<T>& block, int group) {
  using namespace jrt::detail::cuda;
  TiledFinish<T> finish(job, block, group);
  TiledPlace<T> place;
  bool waited = false;
  for (TileWalk<T> walk(job); walk.is_there(); walk.advance()) {
    int row;
    int output;
    walk.place(row, output);
    finish.prepare(row + group * 64, output);
    if (!waited) {
      jrt::await_previous_kernel();
      waited = true;
    }
    finish.begin();
    float sums[T::sums];
    int last = 0;
    for (int i = 0; i < block.slot_count; ++i) {
      barrier_wait(block.full(place.slot), place.round);
      const SharedAddress slot = block.slot(place.slot);
      const MatrixDescriptor x(slot + static_cast<SharedAddress>(group * 64 * 128), 16, 1024, Swizzle::bytes_128);
      const MatrixDescriptor weight(slot + T::x_bytes, 16, 1024, Swizzle::bytes_128);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < tile_depth / 16; ++k) {
        TileProduct<T::columns>::add(sums, x.after(32 * k).word(), weight.after(32 * k).word(), i + k > 0 ? 1 : 0);
      }
      wgmma_commit();
      if (i > 0) {
        wgmma_wait<1>();
        barrier_arrive(block.empty(last));
      }
      last = place.slot;
      place.advance();
    }
    wgmma_wait<0>();
    fence_accumulators(sums);
    barrier_arrive(block.empty(last));
    finish.run(sums);
  }
  finish.end();
}

template <class T>
__global__ void __launch_bounds__(jrt::detail::cuda::hopper_threads<tiled_threads>, 1)
    tiled_product_kernel(const __grid_constant__ TiledJob job) {
  if constexpr (jrt::detail::cuda::compiling_for_hopper) {
    using namespace jrt::detail::cuda;
    const SharedAddress shared = shared_address(hopper_shared_memory);
    const TiledBlock<T> block(shared, job);
    const int warp = warp_uniform(static_cast<int>(threadIdx.x) / 32);
    if (warp == 0) {
      for (int i = 0; i < T::slots; ++i) {
        barrier_init(block.full(i), 1);
        barrier_init(block.empty(i), 8);
      }
      for (int i = 0; i < 8; ++i) {
        barrier_init(block.stream_barrier(i), 1);
      }
      barrier_init(block.exchange_barrier(), 128);
      barrier_init_fence();
      prefetch_map(job.weight);
      prefetch_map(job.x);
    }
    if constexpr (T::splits > 1) {
      cluster_barrier();
    } else {
      __syncthreads();
    }
    jrt::let_next_kernel_start();
    if (warp < 4) {
      give_registers<40>();
      if (warp == 0) {
        TiledCopier<T>(job, block).run();
      }
    } else {
      take_registers<232>();
      multiply_tiles(job, block, warp / 4 - 1);
    }
    if constexpr (T::splits > 1) {
      cluster_barrier();  // others may still write here
    }
  }
}

}  // namespace jrt_lm
