// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/numbers.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/linear/sm90/layout.cuh"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The features of 16 queries as left operands for the rows of the published state, formed in registers from the tile in
/// shared memory. plan/hopper_packing.hpp has the order of the features.
template <class Config>
class QueryFeatures {
 public:
  using Layout = HopperLayout<Config>;
  using Numbers = HopperNumbers<typename Config::Element>;

  /// Warp w of the four has rows 16w … 16w + 15 of the tile.
  __device__ explicit QueryFeatures(int warp) : warp_(warp) {}

  /// With d = 8: features of steps 0, 1 and 2.
  __device__ void all(SharedAddress query, LeftFragment (&features)[3]) const {
    const unsigned c = lane() % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Pair x = load_pair(word(query, h, 0));
      const Pair next = load_pair(word(query, h, 1));
      const Pair shifted_by_2 = next;
      const Pair after_next = load_pair(word(query, h, 2));
      const Pair scaled = Numbers::product(x, cross_factor);
      features[0].pairs[h] = Numbers::product(Numbers::product(x, square_factor), x);
      features[0].pairs[2 + h] = c < 2 ? Numbers::product(scaled, after_next) : (c == 2 ? constant_and_zero : 0);
      features[1].pairs[h] = Numbers::product(scaled, __byte_perm(x, next, 0x5432));
      features[1].pairs[2 + h] = Numbers::product(x, linear_factor);
      features[2].pairs[h] = Numbers::product(scaled, shifted_by_2);
      features[2].pairs[2 + h] = Numbers::product(scaled, __byte_perm(next, after_next, 0x5432));
    }
  }

  /// Features of steps 0, 8, 9 and 4: those without a shift, or shifted by four.
  __device__ void unshifted(SharedAddress query, LeftFragment (&features)[4]) const {
    const unsigned c = lane() % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const SharedAddress at = word(query, h, 0);
      const SharedAddress shifted_at = word(query, h, 2);
      const Pair low = load_pair(at);
      const Pair high = load_pair(other_half(at));
      const Pair low_shifted = load_pair(shifted_at);
      const Pair high_shifted = load_pair(other_half(shifted_at));
      const Pair low_scaled = Numbers::product(low, cross_factor);
      const Pair high_scaled = Numbers::product(high, cross_factor);
      features[0].pairs[h] = Numbers::product(Numbers::product(low, square_factor), low);
      features[0].pairs[2 + h] = Numbers::product(Numbers::product(high, square_factor), high);
      features[1].pairs[h] = Numbers::product(low_scaled, high);
      features[1].pairs[2 + h] = c == 0 ? constant_and_zero : 0;
      features[2].pairs[h] = Numbers::product(low, linear_factor);
      features[2].pairs[2 + h] = Numbers::product(high, linear_factor);
      features[3].pairs[h] = Numbers::product(low_scaled, high_shifted);
      features[3].pairs[2 + h] = Numbers::product(c < 2 ? low_scaled : high_scaled, c < 2 ? low_shifted : high_shifted);
    }
  }

  /// Features of steps 1, 5, 2, 6, 3 and 7: halves shifted by one, two and three.
  __device__ void shifted(SharedAddress query, LeftFragment (&features)[6]) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      Pair low[3];
      Pair high[3];
#pragma unroll
      for (unsigned shift = 0; shift < 3; ++shift) {
        const SharedAddress at = word(query, h, shift);
        low[shift] = load_pair(at);
        high[shift] = load_pair(other_half(at));
      }
      const Pair low_scaled = Numbers::product(low[0], cross_factor);
      const Pair high_scaled = Numbers::product(high[0], cross_factor);
#pragma unroll
      for (int shift = 1; shift <= 3; ++shift) {
        // Shifted by an odd number, a pair spans two words.
        const Pair low_shifted = shift == 2 ? low[1] : __byte_perm(low[shift / 2], low[shift / 2 + 1], 0x5432);
        const Pair high_shifted = shift == 2 ? high[1] : __byte_perm(high[shift / 2], high[shift / 2 + 1], 0x5432);
        LeftFragment& same = features[2 * shift - 2];
        LeftFragment& cross = features[2 * shift - 1];
        same.pairs[h] = Numbers::product(low_scaled, low_shifted);
        same.pairs[2 + h] = Numbers::product(high_scaled, high_shifted);
        cross.pairs[h] = Numbers::product(low_scaled, high_shifted);
        cross.pairs[2 + h] = Numbers::product(high_scaled, low_shifted);
      }
    }
  }

 private:
  // Factors of a query's features: 1/d, 1/2d, 1/√d and 1 (see HopperPacking), combined with the shifts of HopperNumbers.
  static constexpr bool one_half = Layout::Packing::input_dim == 8;
  static constexpr int log2_d = one_half ? 3 : 4;
  static constexpr Pair cross_factor = Numbers::power_of_two(2 * Numbers::key_shift - log2_d - Numbers::output_shift);
  static constexpr Pair square_factor = Numbers::power_of_two(2 * Numbers::key_shift - log2_d - 1 - Numbers::output_shift);
  static constexpr Pair linear_factor = Numbers::power_of_two(Numbers::key_shift - 2 - Numbers::output_shift) |
                                        (one_half ? Numbers::root_of_two_fraction : 0);
  static constexpr Pair constant_and_zero = Numbers::power_of_two(-Numbers::output_shift) & 0xffffU;

  /// Inputs 2(c + shift) and 2(c + shift) + 1 of half L of a row of queries, c = lane % 4; H is in the other 16 bytes. The
  /// swizzle exchanges the halves of rows 4-7 of every 8.
  [[nodiscard]] __device__ SharedAddress word(SharedAddress query, int h, unsigned shift) const {
    return query + (row() + 8 * h) * Layout::input_row + (((lane() + shift) % 4 * 4) ^ (row() / 4 % 2 * 16));
  }
  static __device__ SharedAddress other_half(SharedAddress word) {
    return word ^ 16;
  }

  static __device__ unsigned lane() {
    return threadIdx.x % 32;
  }
  /// The first of this lane's two rows of the tile; the other is 8 rows further on.
  [[nodiscard]] __device__ unsigned row() const {
    return 16 * warp_ + lane() / 4;
  }

  int warp_;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
