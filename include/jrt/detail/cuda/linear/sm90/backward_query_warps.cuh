// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/linear/sm90/backward_gradient_warps.cuh"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The warps that make the gradients of q. For queries i (rows) and keys j <= i (columns) of a chunk, m the mean of v that
/// the state warps took out of the published S̃ = S − z·mᵀ:
///
///     s = q·kᵀ,  p = dy·vᵀ               both tiles as the copy engine wrote them
///     x = p − m·dy
///     W = x (4 + s),  V = 4 + s          left operands as they are, like all accumulators
///     g = S̃ dy
///     D = W·k + 16 J(q)ᵀg                InputGradient
///     a = Σ_j P x + φ(q)·g               numerator · dy, but for n·(m·dy)
///     U = V·k + Z q + 4 z_lin            16 J(q)ᵀz and the chunk's own part of it
///     c̃ = c + m·dy                       c = f'/f (a + n·(m·dy))
///     dq = f (D + c̃ U)/16
///
/// So dy·y is not taken from the rounded output, which need not be read at all: where values have a common mean that
/// rounding would be the largest error of dq. A normaliser without denominator needs D alone, with m = 0. Where the sums
/// are but a part of the output, c comes from the outputs, and a is not formed.
template <class Config>
class QueryGradientWarps : public GradientWarps<Config, BackwardPass::queries> {
 public:
  using Base = GradientWarps<Config, BackwardPass::queries>;
  using typename Base::Layout, typename Base::Rows, typename Base::Tiles;
  using Element = typename Config::Element;
  using Numbers = HopperNumbers<Element>;
  using Base::Base;

  __device__ void write_gradients() const {
    this->for_chunks([&](const Tiles& tiles) { step(tiles); });
  }

 private:
  using Base::call_, Base::schedule_, Base::rows_, Base::lane, Base::load_floats;
  static constexpr bool normalised = Layout::normalised;
  static constexpr bool given_products = Layout::given_products;
  static constexpr bool forms_products = normalised && !given_products;

  __device__ void step(const Tiles& tiles) const {
    float denominators[2] = {1, 1};
    float products_given[2] = {0, 0};
    load_of_queries(call_.denominators, tiles, denominators);  // early; needed at the end
    if constexpr (given_products) {
      if (schedule_.slice == 0) {  // c is a sum over slices
        load_of_queries(call_.output_products, tiles, products_given);
      }
    }
    // The end of a sequence is zeroed by then; and the first means are fresh.
    if (tiles.n + 1 == schedule_.own_chunks() || (normalised && tiles.n < 3)) {
      this->await_state(tiles);
    }
    this->await_tiles(tiles);
    float means[2] = {0, 0};       // m·dy of this lane's rows
    float numerators[2] = {0, 0};  // this lane's part of a
    float own_sums[8];
    float normaliser_sums[8];
    {
      LeftFragment derivative[4];
      LeftFragment slopes[4];
      {
        float scores[32];
        float products[32];
        Rows::multiply_pairs(scores, products, tiles.x, tiles.summed, tiles.y, tiles.value);
        multiply_means(tiles, means);
        wgmma_wait<0>();
        fence_accumulators(scores);
        fence_accumulators(products);
        weigh(scores, products, means, derivative, slopes, numerators);
      }
      Rows::multiply_inputs(own_sums, derivative, tiles.summed);
      if constexpr (normalised) {
        Rows::multiply_inputs(normaliser_sums, slopes, tiles.summed);
      }
      wgmma_commit();
      wgmma_wait<0>();
      fence_accumulators(own_sums);
      fence_accumulators(normaliser_sums);
    }
    this->await_state(tiles);
    this->issue_next_load(tiles);
    InputGradient<Config> gradient;
    {
      float features[40];
      LeftFragment inputs;
      if constexpr (normalised) {
        rows_.load_inputs(inputs, tiles.x);
      }
      Rows::multiply_state(features, tiles.y, tiles.state);
      if constexpr (normalised) {
        WarpgroupProduct<16>::template add<Element>(normaliser_sums, inputs,
                                                    PublishedMoments::square(moments(tiles)).word(), 1);
      }
      wgmma_commit();
      wgmma_wait<0>();
      fence_accumulators(features);
      fence_accumulators(normaliser_sums);
      gradient.start(own_sums);
      gradient.template add_first<forms_products>(tiles.x, rows_.warp(), features, numerators);
    }
    float features[40];
    Rows::multiply_state(features, tiles.y, tiles.state + PublishedState::half);
    wgmma_commit();
    wgmma_wait<0>();
    fence_accumulators(features);
    const typename InputGradient<Config>::Inputs inputs(tiles.x, rows_.warp());
    if constexpr (normalised) {
      add_linear_moments(tiles, normaliser_sums);
    }
    barrier_arrive(Layout::state_free + 8 * tiles.buffer);
    gradient.template add_second<forms_products>(inputs, features, numerators);
    float factors[2] = {1, 1};
    finish(tiles, denominators, products_given, means, numerators, normaliser_sums, gradient, factors);
    gradient.store(call_.query_gradient, this->place(tiles), rows_.row(), schedule_.tokens_from(tiles.chunk), factors[0],
                   factors[1]);
  }

  static __device__ SharedAddress moments(const Tiles& tiles) {
    return Layout::moments + tiles.buffer * PublishedMoments::bytes;
  }

  /// Numbers of this lane's two queries.
  template <class T>
  __device__ void load_of_queries(const TensorView<T>& view, const Tiles& tiles, float (&numbers)[2]) const {
    if constexpr (normalised) {
      const std::int64_t first = schedule_.own.first + tiles.chunk * Layout::chunk;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int t = rows_.row() + 8 * h;
        numbers[h] =
            t < schedule_.tokens_from(tiles.chunk) ? *view.row(schedule_.own.row, first + t, schedule_.head) : 0.0F;
      }
    }
  }

  /// m·dy of this lane's rows; all four lanes of a row have it.
  __device__ void multiply_means(const Tiles& tiles, float (&means)[2]) const {
    if constexpr (normalised) {
      const SharedAddress at = Layout::means + tiles.n % 4 * (Layout::columns * 4) + lane() % 4 * 8;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        LeftFragment rows;
        rows_.load_values(rows, tiles.y, k);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float2 mean = load_floats(at + (16 * k + 8 * j) * 4);
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const Pair dy = rows.pairs[2 * j + h];
            means[h] += mean.x * first_of(dy) + mean.y * second_of(dy);
          }
        }
      }
      sum_lanes(means);
    }
  }
  static __device__ void sum_lanes(float (&sums)[2]) {
#pragma unroll
    for (float& sum : sums) {
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
    }
  }

  /// W, V and this lane's part of Σ_j P x. Keys after the query have x = 0 and V = 0 (and no keys are past the end:
  /// zeroed).
  __device__ void weigh(const float (&scores)[32], const float (&products)[32], const float (&means)[2],
                        LeftFragment (&derivative)[4], LeftFragment (&slopes)[4], float (&numerators)[2]) const {
    const Pair diagonal = Base::diagonal_bits();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (this->sees_none(k)) {
        Base::clear(derivative[k]);
        Base::clear(slopes[k]);
        continue;
      }
      const bool all = this->sees_all(k);
      const bool sees[2] = {all || (diagonal & 1) != 0, all || diagonal >> 31 != 0};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float w[2];
          float v[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float s = scores[8 * k + 4 * j + 2 * h + e];
            const float own = products[8 * k + 4 * j + 2 * h + e] - means[h];
            const float x = j < h || (j == h ? sees[e] : all) ? own : 0.0F;
            v[e] = 4 + s;
            w[e] = x * v[e];
            if constexpr (forms_products) {
              numerators[h] = fmaf(x, fmaf(s, fmaf(s, 1.0F / 32, 0.25F), 1.0F), numerators[h]);
            }
          }
          derivative[k].pairs[2 * j + h] = Numbers::rounded(w[0], w[1]);
          slopes[k].pairs[2 * j + h] = Numbers::rounded(v[0], v[1]);
        }
      }
      this->mask(slopes[k], k, diagonal);
    }
  }

  static __device__ void add_linear_moments(const Tiles& tiles, float (&sums)[8]) {
    const SharedAddress at = moments(tiles) + PublishedMoments::linear + lane() % 4 * 8;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float2 linear = load_floats(at + 32 * j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        sums[4 * j + 2 * h] += linear.x;
        sums[4 * j + 2 * h + 1] += linear.y;
      }
    }
  }

  /// f and c of this lane's rows: adds c̃ U, and writes the record of the chunk. Both are 0 where there is no token.
  __device__ void finish(const Tiles& tiles, const float (&denominators)[2],
                         [[maybe_unused]] const float (&products_given)[2], const float (&means)[2], float (&numerators)[2],
                         const float (&normaliser_sums)[8], InputGradient<Config>& gradient, float (&factors)[2]) const {
    using Normaliser = typename Config::Normaliser;
    float c[2] = {0, 0};
    float centred[2] = {0, 0};
    if constexpr (given_products) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        factors[h] = Normaliser::factor(denominators[h]);
        const float ratio = Normaliser::factor_derivative(denominators[h]) / (factors[h] * factors[h]);
        c[h] = factors[h] == 0 ? 0.0F : ratio * products_given[h];
        centred[h] = c[h] + means[h];
      }
      gradient.add(normaliser_sums, centred);
    } else if constexpr (normalised) {
      sum_lanes(numerators);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float n = denominators[h];
        if constexpr (is_sum_normaliser<Normaliser>) {
          constexpr auto epsilon = static_cast<float>(Normaliser::epsilon);
          factors[h] = n == 0 ? 0.0F : approximate_reciprocal(n + epsilon);
          centred[h] = factors[h] * fmaf(epsilon, means[h], -numerators[h]);
        } else {
          factors[h] = Normaliser::factor(n);
          const float ratio = factors[h] == 0 ? 0.0F : Normaliser::factor_derivative(n) / factors[h];
          centred[h] = fmaf(ratio, fmaf(n, means[h], numerators[h]), means[h]);
        }
        c[h] = centred[h] - means[h];
      }
      gradient.add(normaliser_sums, centred);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (rows_.row() + 8 * h >= schedule_.tokens_from(tiles.chunk)) {
        factors[h] = c[h] = 0;
      }
    }
    write_record(tiles.chunk, factors, c);
  }

  __device__ void write_record(int chunk, const float (&factors)[2], const float (&c)[2]) const {
    std::byte* const record = schedule_.records + static_cast<std::int64_t>(chunk) * TokenRecord::bytes;
    const unsigned quarter = lane() % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int t = rows_.row() + 8 * h;
      if (quarter < 2) {
        auto* const to = reinterpret_cast<float*>(record + (quarter == 0 ? TokenRecord::factor : TokenRecord::scaled));
        to[t] = quarter == 0 ? factors[h] : factors[h] * c[h];
      } else {
        const Pair rounded = Numbers::rounded(c[h], factors[h]);
        auto* const to = reinterpret_cast<std::uint16_t*>(record);
        if (quarter == 2) {
          to[TokenRecord::factor_pairs / 2 + t] = static_cast<std::uint16_t>(rounded >> 16);
          to[TokenRecord::high / 2 + t] = static_cast<std::uint16_t>(rounded);
        } else {
          to[TokenRecord::low / 2 + t] = static_cast<std::uint16_t>(Numbers::rounded(c[h] - first_of(rounded), 0));
        }
      }
    }
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
