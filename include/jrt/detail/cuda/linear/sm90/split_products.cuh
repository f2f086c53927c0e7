// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/mma.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/core/sm90/product_by_rows.cuh"
#include "jrt/detail/cuda/linear/sm90/split_chunk.cuh"
#include "jrt/detail/cuda/linear/sm90/split_features.cuh"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The products of SplitEngine from which a group's outputs are formed.
template <class Config>
class SplitProductsOf : protected SplitChunk<Config> {
  using Chunk = SplitChunk<Config>;

 protected:
  using Layout = SplitLayout<Config>;
  using Queries = SplitQueryFragments<Layout>;
  static constexpr int fragments = 2;  // left operands in use by the matrix unit at a time

  using Chunk::Chunk;

  /// sums += left · right, small terms first; `right` is the large term of the right operand, the small one lies `apart`
  /// bytes on.
  static __device__ void multiply(float (&sums)[Layout::width / 2], const SplitLeft& left, const MatrixDescriptor& right,
                                  int apart) {
    wgmma_fence();
    product(sums, left[1], right);
    product(sums, left[0], right.after(apart));
    product(sums, left[0], right);
    wgmma_commit();
  }
  static __device__ void product(float (&sums)[Layout::width / 2], const LeftFragment& left,
                                 const MatrixDescriptor& right) {
    WarpgroupProduct<Layout::width>::template add<BFloat16>(sums, left, right.word(), 1);
  }

  /// sums += [P·v | P·1] over the chunk's keys up to the group's tokens.
  static __device__ void add_scores(float (&sums)[Layout::width / 2], SplitLeft (&left)[fragments], const Queries& queries,
                                    int group, int warp) {
    SplitLeft inputs;
    queries.inputs(inputs);
    MatrixDescriptor keys = Chunk::score_keys();
    MatrixDescriptor values = Chunk::values();
#pragma unroll 1
    for (int tile = 0; tile < group; ++tile) {
      add_tile<false>(sums, left, inputs, keys, values, 0);
      keys = keys.after(64 * Layout::score_row);
      values = values.after(8 * Layout::row_block);
    }
    add_tile<true>(sums, left, inputs, keys, values, warp);
  }

  /// The same over 64 keys. `own`: these are the group's own tokens, of which those after a warp's have weight 0.
  template <bool own>
  static __device__ void add_tile(float (&sums)[Layout::width / 2], SplitLeft (&left)[fragments], const SplitLeft& inputs,
                                  const MatrixDescriptor& keys, const MatrixDescriptor& values, int warp) {
    const int lane = Chunk::lane();
    float scores[32];
    wgmma_fence();
    add_by_rows<BFloat16>(scores, inputs[1], keys.word(), 0);
    add_by_rows<BFloat16>(scores, inputs[0], keys.after(Layout::score_term).word(), 1);
    add_by_rows<BFloat16>(scores, inputs[0], keys.word(), 1);
    wgmma_commit();
    wgmma_wait<0>();
    fence_accumulators(scores);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      wgmma_wait<fragments - 1>();
      // By how many places after its own token a key may come, less this lane's distance between the first two.
      const int reach = 64 * (warp - k) - (lane % 4 * 2 - lane / 4);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float weights[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            weights[e] = kernel(scores[4 * (2 * k + n) + 2 * i + e]);
            if (own) {
              weights[e] = 8 * n + e - 8 * i <= reach ? weights[e] : 0.0F;
            }
          }
          set_pair(left[k % fragments], 2 * n + i, split(weights[0], weights[1]));
        }
      }
      multiply(sums, left[k % fragments], values.after(2 * k * Layout::row_block), Layout::value_term);
    }
  }

  /// Map::kernel of inputs that are scaled.
  static __device__ float kernel(float dot) {
    float weight = fmaf(dot, fmaf(dot, 0.5F, 1), 1);
    asm("" : "+f"(weight));  // the compiler would guard each of its instructions by a mask
    return weight;
  }

  /// sums += φ(q)·[S | z].
  static __device__ void add_state(float (&sums)[Layout::width / 2], SplitLeft (&left)[fragments], Queries& queries) {
    const auto add = [&](int n, int step, const auto& form) {
      wgmma_wait<fragments - 1>();
      form(left[n % fragments]);
      multiply(sums, left[n % fragments], Chunk::states(step), Layout::state_term);
    };
    add(0, Layout::linear_step, [&](SplitLeft& to) { queries.inputs(to); });
    queries.load();
    queries.load(0);
#pragma unroll
    for (int shift = 0; shift < Layout::half_step; ++shift) {
      add(shift + 1, shift, [&](SplitLeft& to) { queries.products(to); });
      queries.load(shift + 1);  // while the products run
    }
    add(Layout::half_step + 1, Layout::half_step, [&](SplitLeft& to) { queries.half(to); });
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
