// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/linear/sm90/backward_gradient_warps.cuh"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The warps that make the gradients of k and v. For keys j (rows) and queries i >= j (columns) of a chunk:
///
///     s = k·qᵀ,  p = v·dyᵀ              both tiles as the copy engine wrote them
///     W = (f_i p + f_i c_i)(4 + s)      f, c from the token record
///     g = [v | 1]·Rᵀ                    R published by the state warps
///     dk = (W·q + 16 J(k)ᵀg)/16         InputGradient
///     s = k·qᵀ again                    rather than 16 registers
///     P = f_i (1 + s/4 + s²/32)
///     dv = P·dy + φ(k)·R                staged over this warp's rows of v, which no one else reads
///
/// Accumulators are left operands as they are, so W and P never leave the registers.
template <class Config>
class KeyGradientWarps : public GradientWarps<Config, BackwardPass::keys> {
 public:
  using Base = GradientWarps<Config, BackwardPass::keys>;
  using typename Base::Layout, typename Base::Rows, typename Base::Tiles;
  using Element = typename Config::Element;
  using Numbers = HopperNumbers<Element>;
  using Base::Base;

  __device__ void write_gradients() const {
    this->for_chunks([&](const Tiles& tiles) {
      this->await_tiles(tiles);
      write_key_gradients(tiles);
      if (call_.value_gradient.data != nullptr) {
        write_value_gradients(tiles);
      } else {
        barrier_arrive(Layout::state_free + 8 * tiles.buffer);
      }
    });
    await_stores();
  }

 private:
  using Base::call_, Base::schedule_, Base::rows_, Base::lane, Base::load_floats;

  __device__ void write_key_gradients(const Tiles& tiles) const {
    LeftFragment weights[4];
    {
      float scores[32];
      float products[32];
      Rows::multiply_pairs(scores, products, tiles.x, tiles.summed, tiles.y, tiles.value);
      if (tiles.n > 0) {
        await_stores_read();  // of dv, of the chunk before
        barrier_arrive(Layout::stored);
      }
      wgmma_wait<0>();
      fence_accumulators(scores);
      fence_accumulators(products);
      weigh_derivative(scores, products, tiles.stage, weights);
    }
    float own_sums[8];
    Rows::multiply_inputs(own_sums, weights, tiles.summed);
    wgmma_commit();
    wgmma_wait<0>();
    fence_accumulators(own_sums);
    this->await_state(tiles);
    this->issue_next_load(tiles);
    InputGradient<Config> gradient;
    float no_sum[2];
    {
      float features[40];
      Rows::multiply_state_and_column(features, tiles.y, tiles.state);
      wgmma_commit();
      wgmma_wait<0>();
      fence_accumulators(features);
      gradient.start(own_sums);
      gradient.template add_first<false>(tiles.x, rows_.warp(), features, no_sum);
    }
    float features[40];
    Rows::multiply_state_and_column(features, tiles.y, tiles.state + PublishedState::half);
    wgmma_commit();
    wgmma_wait<0>();
    fence_accumulators(features);
    gradient.template add_second<false>(typename InputGradient<Config>::Inputs(tiles.x, rows_.warp()), features, no_sum);
    gradient.store(call_.key_gradient, this->place(tiles), rows_.row(), schedule_.tokens_from(tiles.chunk), 1, 1);
  }

  __device__ void write_value_gradients(const Tiles& tiles) const {
    LeftFragment weights[4];
    {
      float scores[32];
      wgmma_fence();
      multiply_tiles<Element>(scores, Rows::input_tile(tiles.x).word(), Rows::input_tile(tiles.summed).word());
      wgmma_commit();
      wgmma_wait<0>();
      fence_accumulators(scores);
      weigh(scores, tiles.stage, weights);
    }
    float sums[32];
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      WarpgroupProduct<64>::template add<Element>(sums, weights[k], Rows::value_rows(tiles.value, k).word(), k > 0 ? 1 : 0);
    }
    wgmma_commit();
    rows_.add_unshifted(sums, tiles.x, tiles.state, 1);
    wgmma_wait<0>();
    rows_.add_shifted(sums, tiles.x, tiles.state);
    wgmma_wait<0>();
    fence_accumulators(sums);
    barrier_arrive(Layout::state_free + 8 * tiles.buffer);
    rows_.store_values(sums, tiles.y, call_.value_gradient, call_.maps.value_gradient, this->value_place(tiles),
                       schedule_.tokens_from(tiles.chunk));
  }

  /// Of the record of a stage, this lane's part: of queries 2(lane % 4) and the next, and of every 8 more.
  static __device__ SharedAddress record(int stage) {
    return Layout::records + stage * TokenRecord::bytes + lane() % 4 * 8;
  }

  __device__ void weigh_derivative(const float (&scores)[32], const float (&products)[32], int stage,
                                   LeftFragment (&weights)[4]) const {
    const SharedAddress own = record(stage);
    const Pair diagonal = Base::diagonal_bits();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (this->sees_none(k)) {
        Base::clear(weights[k]);
        continue;
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float2 factor = load_floats(own + TokenRecord::factor + (16 * k + 8 * j) * 4);
        const float2 scaled = load_floats(own + TokenRecord::scaled + (16 * k + 8 * j) * 4);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float* const s = scores + 8 * k + 4 * j + 2 * h;
          const float* const p = products + 8 * k + 4 * j + 2 * h;
          weights[k].pairs[2 * j + h] =
              Numbers::rounded(fmaf(p[0], factor.x, scaled.x) * (4 + s[0]), fmaf(p[1], factor.y, scaled.y) * (4 + s[1]));
        }
      }
      this->mask(weights[k], k, diagonal);
    }
  }

  __device__ void weigh(const float (&scores)[32], int stage, LeftFragment (&weights)[4]) const {
    const auto weight = [](float dot) { return fmaf(dot, fmaf(dot, 1.0F / 32, 0.25F), 1.0F); };
    const SharedAddress own = record(stage);
    const Pair diagonal = Base::diagonal_bits();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (this->sees_none(k)) {
        Base::clear(weights[k]);
        continue;
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float2 factor = load_floats(own + TokenRecord::factor + (16 * k + 8 * j) * 4);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float* const s = scores + 8 * k + 4 * j + 2 * h;
          weights[k].pairs[2 * j + h] = Numbers::rounded(factor.x * weight(s[0]), factor.y * weight(s[1]));
        }
      }
      this->mask(weights[k], k, diagonal);
    }
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
