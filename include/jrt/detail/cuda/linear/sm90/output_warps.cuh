// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/numbers.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/linear/sm90/layout.cuh"
#include "jrt/detail/cuda/linear/sm90/query_features.cuh"
#include "jrt/detail/cuda/linear/sm90/schedule.cuh"
#include "jrt/detail/cuda/linear/sm90/state_factors.cuh"
#include "jrt/detail/shared/linear/denominators.hpp"
#include "jrt/numeric.hpp"
#include "jrt/tensor_view.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The four warps of a block that compute the outputs; the first of them issues all copies. Warp w has tokens
/// 16w … 16w + 15 of a chunk:
///
///     scores   s = q·kᵀ                          both tiles as the copy engine wrote them
///     weights  P = 1 + s/4 + s²/32, causal       in registers: accumulators are already left operands
///     outputs  [y | den] = P·[v | 1] + φ(q)·S    φ(q) formed in registers, S published by the StateWarps
///     output   y · factor(den)                   through shared memory, 16 rows at a time
///
/// A step is one chunk for one query head; with grouped heads, all steps of a chunk read the same published state.
template <class Config, QueryHeads heads, class LayoutT = HopperLayout<Config>>
class OutputWarps {
 public:
  using Layout = LayoutT;
  using Schedule = HopperSchedule<Config, Layout>;
  using Maps = typename Schedule::Maps;
  using Element = typename Config::Element;
  using Numbers = HopperNumbers<Element>;

  __device__ OutputWarps(const Maps& maps, const Schedule& schedule, const TensorView<Element>& output,
                         const TensorView<float>& denominators, const int& group)
      : maps_(maps),
        schedule_(schedule),
        output_(output),
        denominators_(denominators),
        group_(group),
        warp_(warp_uniform(static_cast<int>(threadIdx.x) / 32 % 4)),
        group_index_(Layout::groups == 1 ? 0 : warp_uniform(static_cast<int>(threadIdx.x) / 128 % Layout::groups)) {}

  /// Issues the first copies, and those of chunks that are only summed, during which these warps are otherwise idle.
  __device__ void start_copies(bool sums_own) const {
    if (!copies() || group_index_ > 0) {
      return;
    }
    const int own = Schedule::chunks_of(schedule_.own);
    const int summed = schedule_.earlier_chunks() + (sums_own ? own : 0);
    const int chunks = full ? summed : summed + own;
#pragma unroll 1
    for (int i = 0; i < Layout::stages; ++i) {
      if (i < chunks) {
        schedule_.load_keys(maps_, i);
      }
      if (i < own * group()) {
        schedule_.load_queries(maps_, i, group());
      }
    }
#pragma unroll 1
    for (int i = Layout::stages; i < summed + Layout::stages && i < chunks; ++i) {
      barrier_wait(Layout::keys_free + 8 * (i % Layout::stages), (i / Layout::stages - 1) % 2);
      schedule_.load_keys(maps_, i);
    }
  }

  __device__ void write_outputs() const {
    const int chunks = Schedule::chunks_of(schedule_.own);
    if (chunks <= group_index_) {
      return;
    }
    // Not earlier: until the state is published, the barriers of keys are in phases of chunks that are only summed.
    barrier_wait(Layout::state_full + (full ? 0 : 8 * group_index_), 0);
    int chunk = schedule_.earlier_chunks() + group_index_;
    for (int n = group_index_; n < chunks; n += Layout::groups, chunk += Layout::groups) {
      if constexpr (grouped) {
        for (int g = 0; g < group_; ++g) {
          output_step(n, chunk, g);
        }
      } else {
        output_step(n, chunk, 0);
      }
      if constexpr (!full) {
        barrier_arrive(Layout::state_free + 8 * (n % 2));
      }
    }
    await_stores();
  }

 private:
  static constexpr bool full = Config::Mask::reads_future;
  static constexpr bool grouped = heads == QueryHeads::grouped;
  static constexpr bool one_half = Layout::Packing::input_dim == 8;
  static constexpr int ones_column = 4 * (Layout::columns / 8);
  // Sums of many columns leave no registers for features beside scores.
  static constexpr bool features_late = Layout::width > 72;

  static __device__ unsigned lane() {
    return threadIdx.x % 32;
  }
  /// Whether this is the warp that issues the copies.
  [[nodiscard]] __device__ bool copies() const {
    return warp_ == 0;
  }
  [[nodiscard]] __device__ int group() const {
    return grouped ? group_ : 1;
  }
  /// Index of the first of this lane's two rows in a chunk.
  [[nodiscard]] __device__ unsigned row() const {
    return 16 * warp_ + lane() / 4;
  }

  /// Outputs of query head g for the n-th chunk of the block's own run, which is chunk `chunk` of the block.
  __device__ void output_step(int n, int chunk, int g) const {
    const int step = n * group() + g;
    const int stage = chunk % Layout::stages;
    const int query_stage = step % Layout::stages;
    const int buffer = full ? 0 : n % 2;
    const SharedAddress query = Layout::queries + query_stage * Layout::input_tile;
    const SharedAddress state = Layout::states + buffer * Layout::state_tile;
    float scores[32];
    float sums[Layout::width / 2];
    if constexpr (!full) {
      if (n + 1 == Schedule::chunks_of(schedule_.own) || Config::Padding::keeps_padded_keys) {
        barrier_wait(Layout::state_full + 8 * buffer, n / 2 % 2);  // any repair is done by then
      }
      barrier_wait(Layout::keys_full + 8 * stage, chunk / Layout::stages % 2);
      barrier_wait(Layout::query_full + 8 * query_stage, step / Layout::stages % 2);
      const SharedAddress key = Layout::keys + stage * Layout::input_tile;
      wgmma_fence();
      multiply_tiles<Element>(scores, input_tile(query).word(), input_tile(key).word());
      wgmma_commit();
    } else {
      barrier_wait(Layout::query_full + 8 * query_stage, step / Layout::stages % 2);
#pragma unroll
      for (float& sum : sums) {
        sum = 0;
      }
    }
    LeftFragment first[one_half ? 3 : 4];
    const QueryFeatures<Config> query_features(warp_);
    const auto form_first = [&] {
      if constexpr (one_half) {
        query_features.all(query, first);
      } else {
        query_features.unshifted(query, first);
      }
    };
    if constexpr (full || !features_late) {
      form_first();
    }
    if constexpr (!full) {
      wgmma_wait<0>();
      fence_accumulators(scores);
      LeftFragment weights[4];
      weigh(scores, weights);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        WarpgroupProduct<Layout::width>::template add<Element>(sums, weights[k], Layout::right_operand(stage, k, 0).word(),
                                                               k > 0 ? 1 : 0);
      }
      wgmma_commit();
      if constexpr (features_late) {
        form_first();
      }
      barrier_wait(Layout::state_full + 8 * buffer, n / 2 % 2);
    }
    // State warp w has published the rows of steps w, 4 + w and 8 + w.
    const StateFactors<Config> factors(buffer);
    if (!factors.none()) {
      wgmma_wait<0>();
      fence_accumulators(sums);
#pragma unroll
      for (float& sum : sums) {
        sum *= factors.of_sums();
      }
    }
    if constexpr (one_half) {
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        factors.apply(first[i], i);
      }
      wgmma_fence();
      add(sums, state, 0, first[0]);
      add(sums, state, 1, first[1]);
      add(sums, state, 2, first[2]);
      wgmma_commit();
    } else {
      factors.apply(first[0], 0);
      factors.apply(first[1], 0);
      factors.apply(first[2], 1);
      factors.apply(first[3], 0);
      wgmma_fence();
      add(sums, state, 0, first[0]);
      add(sums, state, 8, first[1]);
      add(sums, state, 9, first[2]);
      add(sums, state, 4, first[3]);
      wgmma_commit();
      wgmma_wait<0>();
      LeftFragment shifted[6];
      query_features.shifted(query, shifted);
      const StateFactors<Config> again(buffer);  // recomputed, as there are no registers to keep it
#pragma unroll
      for (int i = 0; i < 6; ++i) {
        again.apply(shifted[i], i / 2 + 1);
      }
      wgmma_fence();
      add(sums, state, 1, shifted[0]);
      add(sums, state, 5, shifted[1]);
      add(sums, state, 2, shifted[2]);
      add(sums, state, 6, shifted[3]);
      add(sums, state, 3, shifted[4]);
      add(sums, state, 7, shifted[5]);
      wgmma_commit();
    }
    issue_next_loads(n, g, step);  // overlaps the products
    wgmma_wait<0>();
    fence_accumulators(sums);
    barrier_arrive(Layout::query_free + 8 * query_stage);
    write(n, g, sums, StateFactors<Config>(buffer).restored());
  }

  static __device__ MatrixDescriptor input_tile(SharedAddress tile) {
    return {tile, 16, 8 * Layout::input_row, Swizzle::bytes_32};
  }

  /// sums += features · 16 rows of the state.
  static __device__ void add(float (&sums)[Layout::width / 2], SharedAddress state, int step,
                             const LeftFragment& features) {
    const MatrixDescriptor right(state + step * 2 * Layout::state_row_block, Layout::state_row_block, 128, Swizzle::none);
    WarpgroupProduct<Layout::width>::template add<Element>(sums, features, right.word(), 1);
  }

  /// Waits until the stages of the step before are no longer read, and issues the next loads into them.
  __device__ void issue_next_loads(int n, int g, int step) const {
    if (copies() && step > 0) {
      const int done = step - 1;
      const int next = done + Layout::stages;
      const int next_chunk = n - 1 + Layout::stages;
      const int own = Schedule::chunks_of(schedule_.own);
      barrier_wait(Layout::query_free + 8 * (done % Layout::stages), done / Layout::stages % 2);
      if (next < own * group()) {
        schedule_.load_queries(maps_, next, group());
      }
      // The state of chunk n is published, so the state warps are done with the chunk before.
      if (!full && g == 0 && next_chunk < own) {
        schedule_.template load_keys<KeyRegion::own>(maps_, next_chunk, schedule_.earlier_chunks() + next_chunk);
      }
    }
  }

  /// P of this warp's tokens as left operands for 16 keys each. Token t sees key j if j <= t; the mask is applied to the
  /// bits of pairs, so a masked weight is 0 whatever its score.
  __device__ void weigh(const float (&scores)[32], LeftFragment (&weights)[4]) const {
    using Map = typename Layout::Map;
    constexpr float constant = 1.0F / (1 << Numbers::output_shift);
    constexpr float linear = static_cast<float>(Map::inverse_sqrt_dim) * constant;
    constexpr float quadratic = static_cast<float>(Map::inverse_sqrt_dim) * linear / 2;
    const auto weight = [](float dot) { return fmaf(dot, fmaf(dot, quadratic, linear), constant); };
    const unsigned first = lane() % 4 * 2;
    const Pair diagonal = (first <= lane() / 4 ? 0xffffu : 0u) | (first + 1 <= lane() / 4 ? 0xffff0000u : 0u);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Pair(&pairs)[4] = weights[k].pairs;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        pairs[i] = Numbers::rounded(weight(scores[8 * k + 2 * i]), weight(scores[8 * k + 2 * i + 1]));
      }
      // Block (rows 0-7, keys 8-15) is masked on the diagonal, block (rows 8-15, keys 0-7) is not.
      const Pair mask = k < warp_ ? ~0u : (k == warp_ ? diagonal : 0u);
      pairs[0] &= mask;
      pairs[1] = k <= warp_ ? pairs[1] : 0;
      pairs[2] = k < warp_ ? pairs[2] : 0;
      pairs[3] &= mask;
    }
  }

  /// The normaliser's factor for the denominator as scaled by HopperNumbers; an exact reciprocal would be lost in the
  /// rounding of a bfloat16 output.
  static __device__ float factor(float scaled_denominator, float restored) {
    using Normaliser = typename Config::Normaliser;
    const float scale = restored * (1 << Numbers::output_shift);
    const float denominator = scaled_denominator * scale;
    if constexpr (is_sum_normaliser<Normaliser>) {
      const float factor = approximate_reciprocal(denominator + static_cast<float>(Normaliser::epsilon)) * scale;
      return denominator == 0 ? 0.0F : factor;
    } else {
      return Normaliser::factor(denominator) * scale;
    }
  }

  /// Stores the denominators of this lane's two rows; all four lanes of a row have them.
  __device__ void store_denominators(int n, int g, float first, float second) const {
    const int t = n * Layout::chunk + static_cast<int>(row());
    constexpr float scale = 1 << Numbers::output_shift;
    const auto keep = [&](int token, float denominator) {
      if (lane() % 4 == 0 && schedule_.column == 0 && token < schedule_.own.tokens) {
        store_denominator(denominators_, schedule_.own.row, schedule_.own.first + token, schedule_.key_head * group() + g,
                          denominator * scale);
      }
    };
    keep(t, first);
    keep(t + 8, second);
  }

  /// Normalises this warp's 16 tokens and hands them to the copy engine; fewer than 16 are stored row by row, since another
  /// sequence may follow them.
  __device__ void write(int n, int g, const float (&sums)[Layout::width / 2], float restored) const {
    const unsigned lane = computed_afresh(OutputWarps::lane());
    // The groups' warps are consecutive: a warp's tile is found without its group, for which there is no register to spare.
    const unsigned place_of_warp = Layout::groups == 1 ? warp_ : computed_afresh(threadIdx.x / 32) % (4 * Layout::groups);
    const SharedAddress tile = Layout::outputs + place_of_warp * Layout::warp_output;
    if (has_denominators<Config> && denominators_.data != nullptr) {
      store_denominators(n, g, sums[ones_column] * restored, sums[ones_column + 2] * restored);
    }
    const float factors[2] = {factor(sums[ones_column], restored), factor(sums[ones_column + 2], restored)};
    const auto pair = [&](int j, int h) {
      return Numbers::rounded(sums[4 * j + 2 * h] * factors[h], sums[4 * j + 2 * h + 1] * factors[h]);
    };
    // Rows of 128 bytes, swizzled: the j-th 16 bytes are at place j ^ row % 8.
    const SharedAddress to = tile + lane % 16 * Layout::output_row + (((lane / 16) ^ (lane % 8)) * 16);
    const auto place = [&](int j) { return (to ^ (16 * (j % 8))) + j / 8 * Layout::output_tile; };
    await_stores_read();
#pragma unroll
    for (int j = 0; j + 1 < Layout::columns / 8; j += 2) {
      store_blocks(place(j), pair(j, 0), pair(j, 1), pair(j + 1, 0), pair(j + 1, 1));
    }
    if constexpr (Layout::columns / 8 % 2 == 1) {
      constexpr int j = Layout::columns / 8 - 1;
      store_blocks(place(j), pair(j, 0), pair(j, 1));
    }
    const TileCoordinates at{schedule_.column, schedule_.own.first + n * Layout::chunk + 16 * warp_,
                             schedule_.key_head * group() + g, schedule_.own.row};
    const int present = schedule_.own.tokens - n * Layout::chunk - 16 * warp_;
    if (present >= 16) {
      async_proxy_fence();
      __syncwarp();
#pragma unroll
      for (int i = 0; i < Layout::output_tiles; ++i) {
        store_tile(&maps_.output, tile + i * Layout::output_tile, {at.column + 64 * i, at.token, at.head, at.row});
      }
    } else if (present > 0) {
      __syncwarp();
      const int piece = static_cast<int>(lane % 8);
#pragma unroll 1
      for (int i = 0; i < Layout::output_tiles; ++i) {
        if (8 * i + piece < Layout::columns / 8 && at.column + 64 * i + 8 * piece < Config::value_dim) {
#pragma unroll 1
          for (int t = static_cast<int>(lane / 8); t < present; t += 4) {
            Pair pairs[4];
            load_pairs(pairs,
                       SharedNumbers::at(tile + i * Layout::output_tile + t * Layout::output_row + (piece ^ (t % 8)) * 16));
            auto* const to_row = output_.row(at.row, at.token + t, at.head) + at.column + 64 * i;
            *reinterpret_cast<uint4*>(to_row + 8 * piece) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
          }
        }
      }
      __syncwarp();
    }
  }

  const Maps& maps_;
  const Schedule& schedule_;
  const TensorView<Element>& output_;
  const TensorView<float>& denominators_;
  const int& group_;  // a parameter of the kernel, like the others: no register
  int warp_;
  int group_index_;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
