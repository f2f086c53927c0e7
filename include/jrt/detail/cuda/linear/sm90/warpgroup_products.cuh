// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/mma.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/linear/sm90/warpgroup_chunk.cuh"
#include "jrt/detail/cuda/linear/sm90/warpgroup_features.cuh"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The products of WarpgroupEngine from which a group's outputs are formed.
template <class Config>
class WarpgroupProducts : protected WarpgroupChunk<Config> {
  using Chunk = WarpgroupChunk<Config>;

 protected:
  using Layout = WarpgroupLayout<Config>;
  using Map = typename Layout::Map;
  static constexpr int fragments = 2;  // left operands in use by the matrix unit at a time

  using Chunk::Chunk;

  /// sums += left · right.
  static __device__ void multiply(float (&sums)[Layout::width / 2], const LeftFragment& left, SharedAddress right) {
    wgmma_fence();
    WarpgroupProduct<Layout::width>::template add<BFloat16>(sums, left, Chunk::blocks_of(right), 1);
    wgmma_commit();
  }

  /// The sum over the four lanes of a row.
  static __device__ float over_quad(float number) {
    number += __shfl_xor_sync(~0u, number, 1);
    return number + __shfl_xor_sync(~0u, number, 2);
  }

  /// sums += P·v, denominators += P·1 over the chunk's keys up to the group's tokens. `rows` are the queries of a warp.
  __device__ static void add_scores(float (&sums)[Layout::width / 2], float (&denominators)[2],
                                    LeftFragment (&left)[fragments], SharedAddress rows, int group, int warp) {
    LeftFragment inputs[Layout::input_steps];
    const int lane = Chunk::lane();
#pragma unroll
    for (int h = 0; h < Layout::input_steps; ++h) {
      QueryFragments<Layout>(rows, h, lane).inputs(inputs[h]);
    }
    SharedAddress keys = key_address(lane);
#pragma unroll 1
    for (int tile = 0; tile <= group; ++tile) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        wgmma_wait<fragments - 1>();
        Accumulator scores[2];
        score(scores, inputs, keys);
        keys += 16 * Layout::row_bytes;
        weigh(left[k % fragments], denominators, scores, lane, tile < group ? 4 : warp - k);
        multiply(sums, left[k % fragments], Chunk::values(64 * tile + 16 * k));
      }
    }
  }

  /// Scores of 16 keys, `keys` being key_address of the first of them.
  static __device__ void score(Accumulator (&scores)[2], const LeftFragment (&inputs)[Layout::input_steps],
                               SharedAddress keys) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      scores[n] = {};
#pragma unroll
      for (int h = 0; h < Layout::input_steps; ++h) {
        multiply_add(scores[n], inputs[h], load_key(keys + static_cast<unsigned>(8 * n * Layout::row_bytes + 64 * h)));
      }
    }
  }

  /// Map::kernel of inputs that are scaled (QueryFragments::inputs).
  static __device__ float kernel(float dot) {
    float weight = fmaf(dot, fmaf(dot, 0.5F, 1), 1);
    asm("" : "+f"(weight));  // the compiler would guard each of its instructions by a mask
    return weight;
  }

  /// P of this warp's tokens and 16 keys as a left operand. `behind`: how many times 16 keys lie between these and the
  /// warp's own tokens; those that lie ahead have weight 0.
  static __device__ void weigh(LeftFragment& left, float (&denominators)[2], const Accumulator (&scores)[2], int lane,
                               int behind) {
    // By how many places after its own token a key may come, less this lane's distance between the first two.
    const int reach = 64 * behind - (lane % 4 * 2 - lane / 4);
    float numbers[4][2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float weight = kernel(scores[n].values[2 * i + e]);
          numbers[2 * n + i][e] = 8 * n + e - 8 * i <= reach ? weight : 0.0F;
        }
      }
    }
    round_left(left, numbers);
    // Sums the rounded weights, by which values are multiplied: rounding moves weight, but adds none.
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 used = as_floats(left.pairs[i]);
      denominators[i % 2] += used.x + used.y;
    }
  }

  /// Where this lane's part of a right operand of the first 8 keys is.
  static __device__ SharedAddress key_address(int lane) {
    return Layout::keys + static_cast<unsigned>(lane / 4 * Layout::row_bytes + lane % 4 * 4);
  }
  /// 16 inputs of a key as this lane's part of a right operand, in the order of QueryFragments.
  static __device__ RightFragment load_key(SharedAddress key) {
    return {{as_pair(__floats2bfloat162_rn(load_number(key), load_number(key + 16))),
             as_pair(__floats2bfloat162_rn(load_number(key + 32), load_number(key + 48)))}};
  }

  /// sums += φ(q)·S, denominators += φ(q)·z.
  static __device__ void add_state(float (&sums)[Layout::width / 2], float (&denominators)[2],
                                   LeftFragment (&left)[fragments], SharedAddress rows) {
    constexpr int steps = Layout::input_steps;
    constexpr int shifts = Layout::input_dim / 2;  // of which the last, by d/2, is of the first half of the inputs alone
    const auto add = [&](LeftFragment& fragment, int step, const auto& form) {
      wgmma_wait<fragments - 1>();
      form(fragment, denominators, step);
      multiply(sums, fragment, Chunk::states(step));
    };
#pragma unroll
    for (int h = 0; h < steps; ++h) {
      const QueryFragments<Layout> queries(rows, h, Chunk::lane());
      if (h > steps / 2) {
        wgmma_wait<0>();  // the half before had no last product: it ended on the fragment that this one begins with
      }
      add(left[0], h, [&](auto&... to) { queries.linear(to...); });
#pragma unroll 1
      for (int first = 0; first < shifts; first += fragments) {
#pragma unroll
        for (int i = 1; i <= fragments; ++i) {
          const int shift = first + i - 1;
          add(left[i % fragments], steps * (shift + 1) + h, [&](auto&... to) { queries.products(to..., shift); });
        }
      }
      if (h < steps / 2) {
        add(left[1], steps * (shifts + 1) + h, [&](auto&... to) { queries.products(to..., shifts); });
      }
      if (h + 1 == steps) {
        add(left[1], Layout::feature_steps - 1,
            [&](LeftFragment& to, float(&sum)[2], int /*step*/) { queries.constant(to, sum); });
      }
    }
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
