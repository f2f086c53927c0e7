// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/instructions.cuh"
#include "jrt/detail/cuda/core/sm90/numbers.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Zeroes what the copy engine has loaded from past the last token of a stage (it may be anything), and keys that are
/// treated as zero. Called by all state warps of the block, which wait for one another.
template <class Layout>
__device__ void repair(int stage, int tokens, int zero_keys) {
  const auto zero_piece = [](SharedAddress at) {
    const Pair zeros[4] = {};
    store_pairs(SharedNumbers::at(at), zeros);
  };
  const int thread = static_cast<int>(threadIdx.x) % Layout::state_warp_threads;
#pragma unroll 1
  for (int piece = thread; piece < Layout::chunk * 2; piece += Layout::state_warp_threads) {
    const int t = piece / 2;
    if (t >= tokens || t < zero_keys) {
      zero_piece(Layout::keys + stage * Layout::input_tile + piece * 16);
    }
  }
  constexpr int pieces = Layout::columns / 8;
#pragma unroll 1
  for (int piece = thread; piece < Layout::chunk * pieces; piece += Layout::state_warp_threads) {
    const int t = piece / pieces;
    if (t >= tokens) {
      zero_piece(Layout::value_piece(stage, t, piece % pieces));
    }
  }
  async_proxy_fence();
  named_barrier(1, Layout::state_warp_threads);
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
