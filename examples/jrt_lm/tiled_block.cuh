// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt_lm/tile_copies.cuh"
#include "jrt_lm/tiled_job.cuh"

namespace jrt_lm {

/// What warps of a block have in common.
template <class T>
struct TiledBlock {
  SharedAddress shared;
  int split;       // this block's of the cluster's
  int first_slot;  // of the depth, in slots
  int slot_count;

  __device__ TiledBlock(SharedAddress memory, const TiledJob& job) : shared(memory) {
    split = T::splits > 1 ? cluster_rank() : 0;
    const int all = (job.in + tile_depth - 1) / tile_depth;
    first_slot = all * split / T::splits;
    slot_count = all * (split + 1) / T::splits - first_slot;
  }
  [[nodiscard]] __device__ SharedAddress slot(int i) const { return shared + T::ring_at + i * T::slot_bytes; }
  [[nodiscard]] __device__ SharedAddress full(int i) const { return shared + T::barriers_at + 8 * i; }
  [[nodiscard]] __device__ SharedAddress empty(int i) const { return full(T::slots + i); }
  [[nodiscard]] __device__ SharedAddress stream_barrier(int warp) const { return full(2 * T::slots + warp); }
  [[nodiscard]] __device__ SharedAddress exchange_barrier() const { return full(2 * T::slots + 8); }
};

}  // namespace jrt_lm
