// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/mma.cuh"
#include "jrt/detail/cuda/core/sm90/numbers.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/window/exponential.cuh"
#include "jrt/detail/cuda/window/sm90/layout.cuh"
#include "jrt/detail/shared/window/online_softmax.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// From scores to weights, for the 16 rows of a warp of a tile of queries.
template <WindowConfig Config>
class HopperWindowWeights {
 protected:
  using Layout = HopperWindowLayout<Config>;
  using Run = HopperWindowRun<Config>;
  using Numbers = HopperNumbers<typename Config::Element>;
  using Softmax = OnlineSoftmax<float, ScaledExponential>;
  static constexpr int left = Config::left_window;

  __device__ HopperWindowWeights(const WindowCall<Config>& call, const Run& run)
      : run_(run),
        warp_(warp_uniform(static_cast<int>(threadIdx.x) / 32 % 4)),
        negative_(static_cast<float>(call.scale) < 0),
        exponential_(call.scale) {}

  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }

  /// Forms the weights of tile i of queries as left operands, for the first-th tile of keys of its window and those after
  /// it. `rescale(factors)` brings the outputs so far, if there are any, to the new maxima.
  template <int first, int tiles, class Rescale>
  __device__ void form_weights(int i, float (&scores)[tiles][32], LeftFragment (&weights)[tiles][4],
                               const Rescale& rescale) {
    if (inside<first, tiles>(i)) {
      if (warp_ < 2) {
        warp_ == 0 ? weigh<0>(scores, weights) : weigh<1>(scores, weights);
      } else {
        warp_ == 2 ? weigh<2>(scores, weights) : weigh<3>(scores, weights);
      }
    } else {
      weigh_any<first>(i, scores, rescale);
#pragma unroll
      for (int t = 0; t < tiles; ++t) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          round(weights[t][c], scores[t], c);
        }
      }
    }
  }

  const Run& run_;
  int warp_;
  bool negative_;
  ScaledExponential exponential_;
  Softmax softmax_[2];  // of this lane's scores in two rows; the maxima are the rows'

 private:
  /// Whether `weigh` forms the weights of tile i of queries: the window is formed at once, all its keys are there, and
  /// scores need no other sign.
  template <int first, int tiles>
  [[nodiscard]] __device__ bool inside(int i) const {
    return first == 0 && tiles == Layout::window_tiles && run_.key_token(i) >= run_.lowest && !negative_;
  }

  /// Weights of scores with the keys of a whole window, for warp `warp`. What its rows see of which block is known to the
  /// compiler, which saves half of the instructions.
  template <int warp, int tiles>
  __device__ void weigh(float (&scores)[tiles][32], LeftFragment (&weights)[tiles][4]) {
    const auto distance_of = [](int t, int c) {  // as block_distance
      return (t - (Layout::window_tiles - 1)) * Layout::tile + 16 * c - 16 * warp;
    };
    const auto sees = [](int distance) { return distance <= 15 && distance >= -left - 15; };
    const int apart = lane() % 4 * 2 - lane() / 4;  // of this lane's first column and row, −7 … 6
    float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int t = 0; t < tiles; ++t) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (sees(distance_of(t, c))) {
#pragma unroll
          for (int n = 0; n < 8; ++n) {
            float& score = scores[t][8 * c + n];
            const int further = distance_of(t, c) + n / 4 * 8 + n % 2 - n / 2 % 2 * 8;
            if (further - 7 > 0 || further + 6 < -left) {
              score = -INFINITY;
            } else {
              if (further + 6 > 0) {
                score = apart > -further ? -INFINITY : score;
              }
              if (further - 7 < -left) {
                score = apart < -left - further ? -INFINITY : score;
              }
              most[n / 2 % 2] = fmaxf(most[n / 2 % 2], score);
            }
          }
        }
      }
    }
    find_maxima(most);
    softmax_[0].maximum = most[0];
    softmax_[1].maximum = most[1];
    const float shifts[2] = {exponential_.shift(most[0]), exponential_.shift(most[1])};
#pragma unroll
    for (int t = 0; t < tiles; ++t) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (sees(distance_of(t, c))) {
          exponentiate(scores[t], c, shifts);
          round(weights[t][c], scores[t], c);
        } else {
          weights[t][c] = {};
        }
      }
    }
  }

  /// The largest of a row, from those of its four lanes.
  static __device__ void find_maxima(float (&most)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 1));
      most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 2));
    }
  }
  /// Turns a block's scores into weights, and adds them to the denominators.
  __device__ void exponentiate(float (&scores)[32], int c, const float (&shifts)[2]) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      float& score = scores[8 * c + n];
      score = exponential_.of(score, shifts[n / 2 % 2]);
      softmax_[n / 2 % 2].denominator += score;
    }
  }
  static __device__ void round(LeftFragment& weights, const float (&scores)[32], int c) {
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      weights.pairs[p] = Numbers::rounded(scores[8 * c + 2 * p], scores[8 * c + 2 * p + 1]);
    }
  }

  /// Calls `function(t, c, hides)` for the blocks of 16 columns in which this warp's rows see anything, and
  /// `otherwise(t, c)` for the others. `hides`: whether part of the block is masked.
  template <int first, int tiles, class Function, class Otherwise>
  __device__ void for_blocks(int i, const Function& function, const Otherwise& otherwise) const {
#pragma unroll
    for (int t = 0; t < tiles; ++t) {
      const bool starts = run_.key_token(i + first + t) < run_.lowest;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int distance = block_distance(first + t, c);
        if (distance <= 15 && distance >= -left - 15) {
          function(t, c, distance > -15 || distance < 15 - left || starts);
        } else {
          otherwise(t, c);
        }
      }
    }
  }
  /// Distance of a block's first column from this warp's first row.
  [[nodiscard]] __device__ int block_distance(int tile, int c) const {
    return (tile - (Layout::window_tiles - 1)) * Layout::tile + 16 * c - 16 * warp_;
  }

  /// Turns scores into weights.
  template <int first, int tiles, class Rescale>
  __device__ void weigh_any(int i, float (&scores)[tiles][32], const Rescale& rescale) {
    const int row = lane() / 4;
    const int column = lane() % 4 * 2;
    float most[2] = {softmax_[0].maximum, softmax_[1].maximum};
    for_blocks<first, tiles>(
        i,
        [&](int t, int c, bool hides) {
          if (negative_) {
#pragma unroll
            for (int n = 0; n < 8; ++n) {
              scores[t][8 * c + n] = -scores[t][8 * c + n];
            }
          }
          if (hides) {
            int distance = block_distance(first + t, c) + column - row;
            if constexpr (Layout::carries || !Layout::narrow) {
              // Not kept in registers for every score, as without this; the other kernels do not need it.
              distance = static_cast<int>(computed_afresh(static_cast<unsigned>(distance)));
            }
            const int lowest = run_.lowest - run_.key_token(i + first + t) - 16 * c;
#pragma unroll
            for (int n = 0; n < 8; ++n) {
              const int from_column = n / 4 * 8 + n % 2;  // from this lane's first
              const int from_row = n / 2 % 2 * 8;
              const int between = distance + from_column - from_row;
              if (between > 0 || between < -left || column + from_column < lowest) {
                scores[t][8 * c + n] = -INFINITY;
              }
            }
          }
#pragma unroll
          for (int n = 0; n < 8; ++n) {
            most[n / 2 % 2] = fmaxf(most[n / 2 % 2], scores[t][8 * c + n]);
          }
        },
        [](int, int) {});
    find_maxima(most);
    if constexpr (first > 0) {
      const float factors[2] = {softmax_[0].absorb(most[0], exponential_), softmax_[1].absorb(most[1], exponential_)};
      rescale(factors);
    } else {
      softmax_[0].maximum = most[0];
      softmax_[1].maximum = most[1];
    }
    // Outside the blocks, each of which would recompute them.
    const float shifts[2] = {exponential_.shift(softmax_[0].maximum), exponential_.shift(softmax_[1].maximum)};
    for_blocks<first, tiles>(
        i, [&](int t, int c, bool) { exponentiate(scores[t], c, shifts); },
        [&](int t, int c) {
#pragma unroll
          for (int n = 0; n < 8; ++n) {
            scores[t][8 * c + n] = 0;
          }
        });
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
