// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/linear/sm90/backward_call.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_layout.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_rows.cuh"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The four warps of a block that make the gradients; the first of them issues all copies. Warp w has tokens
/// 16w … 16w + 15 of a chunk as rows. With x, y the row tiles and s = x·summedᵀ the scores:
///
///     pass queries (rows i, columns j <= i)               pass keys (rows j, columns i >= j)
///
///     W = (dy_i·v_j + c_i)(1 + s/4)                       W = (f_i dy_i·v_j + f_i c_i)(1 + s/4)
///     g = [dy_i | c_i]·Sᵀ                                 g = [v_j | 1]·Rᵀ
///     dq_i = f_i (W·k/4 + J(q_i)ᵀ g)                      dk_j = W·q/4 + J(k_j)ᵀ g
///                                                         P = f_i (1 + s/4 + s²/32)
///                                                         dv_j = P·dy + φ(k_j)·R
///
/// Accumulators are left operands as they are, so W and P never leave the registers. g is made in two halves of 80 features,
/// s twice: 104 registers hold no more.
template <class Config, BackwardPass pass>
class GradientWarps {
 public:
  using Call = HopperBackwardCall<Config>;
  using Layout = BackwardLayout<Config, pass>;
  using Schedule = BackwardSchedule<Config, pass>;
  using Element = typename Config::Element;
  using Numbers = HopperNumbers<Element>;

  __device__ GradientWarps(const Call& call, const Schedule& schedule)
      : call_(call), schedule_(schedule), rows_(warp_uniform(static_cast<int>(threadIdx.x) / 32 % 4)) {}

  /// Issues the first copies, and those of chunks that are only summed, during which these warps are otherwise idle.
  __device__ void start_copies() const {
    if (rows_.warp() != 0) {
      return;
    }
    const int summed = schedule_.encoder_chunks();
    const int chunks = summed + schedule_.own_chunks();
#pragma unroll 1
    for (int i = 0; i < summed + Layout::stages && i < chunks; ++i) {
      if (i >= Layout::stages) {
        barrier_wait(Layout::summed_free + 8 * (i % Layout::stages), (i / Layout::stages - 1) % 2);
      }
      schedule_.load(call_.maps, i);
    }
  }

  __device__ void write_gradients() const {
    const int chunks = schedule_.own_chunks();
    if (chunks == 0) {
      return;
    }
    // Not earlier: until the state is published, the barriers of stages are in phases of chunks that are only summed.
    barrier_wait(Layout::state_full, 0);
#pragma unroll 1
    for (int n = 0; n < chunks; ++n) {
      step(n);
    }
    await_stores();
  }

 private:
  static __device__ unsigned lane() { return threadIdx.x % 32; }

  /// f and c of this lane's two rows (pass `queries`).
  struct TokenFactors {
    float factor[2] = {1, 1};
    float c[2] = {0, 0};
  };

  __device__ void step(int n) const {
    const int i = schedule_.encoder_chunks() + n;
    const int stage = i % Layout::stages;
    const int chunk = schedule_.own_chunk(n);
    const int buffer = n % 2;
    const SharedAddress summed = Layout::inputs + stage * Layout::input_tile;
    const SharedAddress value = Layout::values + stage * Layout::value_tile;
    const SharedAddress x = Layout::row_inputs + stage * Layout::input_tile;
    const SharedAddress y = Layout::row_values + stage * Layout::value_tile;
    const SharedAddress record = Layout::records + stage * TokenRecord::bytes;
    const SharedAddress state = Layout::states + buffer * PublishedState::bytes;
    TokenFactors token;
    if constexpr (Layout::queries) {
      load_denominators(chunk, token);
      if (n + 1 == schedule_.own_chunks()) {
        barrier_wait(Layout::state_full + 8 * buffer, n / 2 % 2);  // the end of the sequence is zeroed by then
      }
    }
    barrier_wait(Layout::full + 8 * stage, i / Layout::stages % 2);
    LeftFragment weights[4];
    {
      float scores[32];
      float products[32];
      rows_.multiply_pairs(scores, products, x, summed, y, value);
      if constexpr (Layout::queries) {
        finish_factors(stage, chunk, y, token);
      } else if (n > 0) {
        await_stores_read();
        barrier_arrive(Layout::stored);
      }
      wgmma_wait<0>();
      fence_accumulators(scores);
      fence_accumulators(products);
      weigh_derivative(scores, products, record, token, weights);
    }
    float own_sums[8];
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      WarpgroupProduct<16>::template add<Element>(
          own_sums, weights[k], BackwardRows<Config>::input_tile(summed + k * 16 * Layout::input_row).word(), k > 0 ? 1 : 0);
    }
    wgmma_commit();
    LeftFragment rows[4];
    rows_.load_rows(rows, y);
    barrier_wait(Layout::state_full + 8 * buffer, n / 2 % 2);
    issue_next_load(n, i);
    Pair extra[2] = {0, 0};
    make_extra(n, rows, token, extra);
    InputGradient<Config> gradient;
    {
      float features[40];
      rows_.multiply_state(features, rows, extra[0], extra[1], state, with_normaliser);
      wgmma_wait<0>();
      fence_accumulators(features);
      fence_accumulators(own_sums);
      gradient.start(own_sums);
      gradient.add_first(x, rows_.warp(), features);
    }
    {
      float features[40];
      rows_.load_rows(rows, y);  // again: 16 registers less in between
      rows_.multiply_state(features, rows, extra[0], extra[1], state + PublishedState::half, with_normaliser);
      wgmma_wait<0>();
      fence_accumulators(features);
      const typename InputGradient<Config>::Inputs inputs(x, rows_.warp());
      if constexpr (Layout::queries) {
        barrier_arrive(Layout::state_free + 8 * buffer);
      }
      gradient.add_second(inputs, features);
    }
    const TileCoordinates at{0, schedule_.own.first + chunk * Layout::chunk, schedule_.head, schedule_.own.row};
    const int present = schedule_.tokens_from(chunk);
    gradient.store(Layout::queries ? call_.query_gradient : call_.key_gradient, at, rows_.row(), present, token.factor[0],
                   token.factor[1]);
    if constexpr (!Layout::queries) {
      write_value_gradients(x, summed, y, value, record, state, buffer, at, present);
    }
  }

  /// The columns of z or r: in pass `keys` r always, as a final state's gradient may come in.
  static constexpr bool with_normaliser = !Layout::queries || Layout::normalised;

  /// dv of the chunk, staged over this warp's rows of v, which no one else reads.
  __device__ void write_value_gradients(SharedAddress x, SharedAddress summed, SharedAddress y, SharedAddress value,
                                        SharedAddress record, SharedAddress state, int buffer, const TileCoordinates& at,
                                        int present) const {
    if (call_.value_gradient.data == nullptr) {
      barrier_arrive(Layout::state_free + 8 * buffer);
      return;
    }
    LeftFragment weights[4];
    {
      float scores[32];
      wgmma_fence();
      multiply_tiles<Element>(scores, BackwardRows<Config>::input_tile(x).word(),
                              BackwardRows<Config>::input_tile(summed).word());
      wgmma_commit();
      wgmma_wait<0>();
      fence_accumulators(scores);
      weigh(scores, record, weights);
    }
    float sums[32];
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      WarpgroupProduct<64>::template add<Element>(sums, weights[k], BackwardRows<Config>::value_rows(value, k).word(),
                                                  k > 0 ? 1 : 0);
    }
    wgmma_commit();
    rows_.add_unshifted(sums, x, state, 1);
    wgmma_wait<0>();
    rows_.add_shifted(sums, x, state);
    wgmma_wait<0>();
    fence_accumulators(sums);
    barrier_arrive(Layout::state_free + 8 * buffer);
    rows_.store_values(sums, y, call_.value_gradient, call_.maps.value_gradient, at, present);
  }

  /// Waits until the stage of the chunk before is no longer read, and issues the next load into it. (The state of chunk n
  /// is published, so the state warps are done with the chunk before.)
  __device__ void issue_next_load(int n, int i) const {
    const int next = i - 1 + Layout::stages;
    if (rows_.warp() == 0 && n > 0 && next < schedule_.encoder_chunks() + schedule_.own_chunks()) {
      barrier_wait(Layout::state_free + 8 * ((n - 1) % 2), (n - 1) / 2 % 2);
      if constexpr (!Layout::queries) {
        barrier_wait(Layout::stored, (n - 1) % 2);
      }
      schedule_.load(call_.maps, next);
    }
    __syncwarp();
  }

  // -- factors of tokens -------------------------------------------------------------------------------------------------

  /// Loads the denominators of this lane's rows early; they are needed at the end.
  __device__ void load_denominators(int chunk, TokenFactors& token) const {
    if constexpr (Layout::normalised) {
      const int present = schedule_.tokens_from(chunk);
      const std::int64_t first = schedule_.own.first + chunk * Layout::chunk;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int t = rows_.row() + 8 * h;
        token.factor[h] = t < present ? *call_.denominators.row(schedule_.own.row, first + t, schedule_.head) : 0.0F;
      }
    }
  }

  /// f and c of this lane's rows, and the record of the chunk. The tile of outputs is next to that of their gradients.
  __device__ void finish_factors(int stage, int chunk, SharedAddress gradients, TokenFactors& token) const {
    if constexpr (Layout::normalised) {
      const SharedAddress outputs = Layout::outputs + stage * Layout::value_tile;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const unsigned g = lane() / 4;
        const SharedAddress row = static_cast<unsigned>(rows_.row() + 8 * h) * Layout::value_row;
        const SharedAddress piece = ((lane() % 4 + g % 2 * 4) ^ g) * 16;  // no two lanes in the same banks
        float delta = dot(outputs + row + piece, gradients + row + piece);
        delta += dot(outputs + row + (piece ^ 64), gradients + row + (piece ^ 64));
        delta += __shfl_xor_sync(~0u, delta, 1);
        delta += __shfl_xor_sync(~0u, delta, 2);
        using Normaliser = typename Config::Normaliser;
        const float denominator = token.factor[h];
        const bool present = rows_.row() + 8 * h < schedule_.tokens_from(chunk);
        if constexpr (is_sum_normaliser<Normaliser>) {
          token.factor[h] = denominator == 0
                                ? 0.0F
                                : approximate_reciprocal(denominator + static_cast<float>(Normaliser::epsilon));
          token.c[h] = present ? -delta : 0.0F;
        } else {
          const float factor = present ? Normaliser::factor(denominator) : 0.0F;
          token.factor[h] = factor;
          token.c[h] = factor == 0 ? 0.0F : Normaliser::factor_derivative(denominator) / (factor * factor) * delta;
        }
      }
    } else {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        token.factor[h] = rows_.row() + 8 * h < schedule_.tokens_from(chunk) ? 1.0F : 0.0F;
      }
    }
    write_record(chunk, token);
  }

  __device__ void write_record(int chunk, const TokenFactors& token) const {
    std::byte* const record = schedule_.records + static_cast<std::int64_t>(chunk) * TokenRecord::bytes;
    const unsigned quarter = lane() % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int t = rows_.row() + 8 * h;
      const float factor = token.factor[h];
      const float c = token.c[h];
      if (quarter < 2) {
        auto* const to = reinterpret_cast<float*>(record + (quarter == 0 ? TokenRecord::factor : TokenRecord::scaled));
        to[t] = quarter == 0 ? factor : factor * c;
      } else {
        const Pair rounded = Numbers::rounded(c, factor);
        const float high = as_floats(rounded).x;
        auto* const to = reinterpret_cast<std::uint16_t*>(record);
        if (quarter == 2) {
          to[TokenRecord::factor_pairs / 2 + t] = static_cast<std::uint16_t>(rounded >> 16);
          to[TokenRecord::high / 2 + t] = static_cast<std::uint16_t>(rounded);
        } else {
          to[TokenRecord::low / 2 + t] = static_cast<std::uint16_t>(Numbers::rounded(c - high, 0));
        }
      }
    }
  }

  /// Left operands for the column of z: c + m·dy in two terms, twice each; for that of r ones.
  __device__ void make_extra(int n, const LeftFragment (&rows)[4], const TokenFactors& token, Pair (&extra)[2]) const {
    const unsigned quarter = lane() % 4;
    if constexpr (!Layout::queries) {
      extra[0] = extra[1] = quarter == 0 ? Numbers::power_of_two(0) : 0;
    } else if constexpr (Layout::normalised) {
      float c[2] = {0, 0};
      const SharedAddress means = Layout::means + n % 4 * (Layout::columns * 4) + quarter * 8;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 mean = load_floats(means + (16 * k + j / 2 * 8) * 4);
          const float2 dy = as_floats(rows[k].pairs[j]);
          c[j % 2] += mean.x * dy.x + mean.y * dy.y;
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        c[h] += __shfl_xor_sync(~0u, c[h], 1);
        c[h] += __shfl_xor_sync(~0u, c[h], 2);
        c[h] += token.c[h];
        const Pair high = Numbers::rounded(c[h], c[h]);
        const float rest = c[h] - as_floats(high).x;
        extra[h] = quarter == 0 ? high : (quarter == 1 ? Numbers::rounded(rest, rest) : 0);
      }
    }
  }

  // -- weights of pairs --------------------------------------------------------------------------------------------------

  __device__ void weigh_derivative(const float (&scores)[32], const float (&products)[32], SharedAddress record,
                                   const TokenFactors& token, LeftFragment (&weights)[4]) const {
    const auto weight = [](float dot, float product) { return product * fmaf(dot, 0.25F, 1.0F); };
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float2 factor{1, 1};
        float2 scaled{0, 0};
        if constexpr (!Layout::queries) {
          factor = load_floats(record + TokenRecord::factor + (16 * k + 8 * j + lane() % 4 * 2) * 4);
          scaled = load_floats(record + TokenRecord::scaled + (16 * k + 8 * j + lane() % 4 * 2) * 4);
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float* const s = scores + 8 * k + 4 * j + 2 * h;
          const float* const p = products + 8 * k + 4 * j + 2 * h;
          if constexpr (Layout::queries) {
            weights[k].pairs[2 * j + h] = Numbers::rounded(weight(s[0], p[0] + token.c[h]), weight(s[1], p[1] + token.c[h]));
          } else {
            weights[k].pairs[2 * j + h] = Numbers::rounded(weight(s[0], fmaf(p[0], factor.x, scaled.x)),
                                                           weight(s[1], fmaf(p[1], factor.y, scaled.y)));
          }
        }
      }
      mask(weights[k], k);
    }
  }

  __device__ void weigh(const float (&scores)[32], SharedAddress record, LeftFragment (&weights)[4]) const {
    const auto weight = [](float dot) { return fmaf(dot, fmaf(dot, 1.0F / 32, 0.25F), 1.0F); };
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float2 factor = load_floats(record + TokenRecord::factor + (16 * k + 8 * j + lane() % 4 * 2) * 4);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float* const s = scores + 8 * k + 4 * j + 2 * h;
          weights[k].pairs[2 * j + h] = Numbers::rounded(factor.x * weight(s[0]), factor.y * weight(s[1]));
        }
      }
      mask(weights[k], k);
    }
  }

  /// Zeroes the bits of pairs that do not see each other. Rows are later than columns in pass `queries`, earlier in `keys`.
  __device__ void mask(LeftFragment& weights, int k) const {
    const int warp = rows_.warp();
    const unsigned row = lane() / 4;
    const unsigned column = lane() % 4 * 2;
    const auto sees = [&](unsigned c) { return Layout::queries ? c <= row : c >= row; };
    const Pair diagonal = (sees(column) ? 0xffffU : 0U) | (sees(column + 1) ? 0xffff0000U : 0U);
    const bool before = Layout::queries ? k < warp : k > warp;
    const Pair bits = before ? ~0U : (k == warp ? diagonal : 0U);
    Pair(&pairs)[4] = weights.pairs;
    pairs[0] &= bits;
    pairs[3] &= bits;
    // Rows 8-15 with columns 0-7, and rows 0-7 with columns 8-15.
    pairs[1] = before || (Layout::queries && k == warp) ? pairs[1] : 0;
    pairs[2] = before || (!Layout::queries && k == warp) ? pairs[2] : 0;
  }

  // -- shared memory -----------------------------------------------------------------------------------------------------

  static __device__ float2 load_floats(SharedAddress from) {
    float2 pair;
    asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(from) : "memory");
    return pair;
  }
  static __device__ float dot(SharedAddress a, SharedAddress b) {
    Pair first[4];
    Pair second[4];
    load_pairs(first, SharedNumbers::at(a));
    load_pairs(second, SharedNumbers::at(b));
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum = fmaf(as_floats(first[i]).x, as_floats(second[i]).x, sum);
      sum = fmaf(as_floats(first[i]).y, as_floats(second[i]).y, sum);
    }
    return sum;
  }

  const Call& call_;
  const Schedule& schedule_;
  BackwardRows<Config> rows_;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
