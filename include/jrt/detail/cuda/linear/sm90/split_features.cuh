// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/mma.cuh"
#include "jrt/detail/cuda/linear/sm90/split_layout.cuh"

/// Features of the Taylor map of d = 16 as left operands of two terms, formed in registers: keys' from inputs that are two
/// terms already, queries' in float, which takes more instructions and is more exact.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

using SplitLeft = LeftFragment[2];

/// Two numbers, each the sum of two bfloat16.
struct SplitPair {
  Pair large;
  Pair small;
};

__device__ inline __nv_bfloat162 as_numbers(Pair pair) {
  return *reinterpret_cast<const __nv_bfloat162*>(&pair);
}

/// Their products, rounded to two terms. Five instructions for two numbers, where products in float, rounded twice, take
/// eight: what rounding the first product has left is a bfloat16 again, so that one fused multiplication gives it exactly.
__device__ inline SplitPair operator*(const SplitPair& a, const SplitPair& b) {
  const __nv_bfloat162 x = as_numbers(a.large);
  const __nv_bfloat162 y = as_numbers(b.large);
  const __nv_bfloat162 large = __hmul2(x, y);
  // Not __hneg2, which is one more multiplication.
  __nv_bfloat162 small = __hfma2(x, y, as_numbers(as_pair(large) ^ 0x80008000U));
  small = __hfma2(as_numbers(a.small), y, small);
  small = __hfma2(x, as_numbers(b.small), small);
  return {as_pair(large), as_pair(small)};
}

__device__ inline SplitPair load_split(SharedAddress from) {
  SplitPair pair;
  asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];" : "=r"(pair.large), "=r"(pair.small) : "r"(from) : "memory");
  return pair;
}
__device__ inline void store_split(SharedAddress to, const SplitPair& first, const SplitPair& second) {
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};"
               :
               : "r"(to), "r"(first.large), "r"(first.small), "r"(second.large), "r"(second.small)
               : "memory");
}
__device__ inline SplitPair split(float first, float second) {
  const auto terms = Terms<2>::of(first, second);
  return {terms.pairs[0], terms.pairs[1]};
}
__device__ inline void set_pair(SplitLeft& left, int i, const SplitPair& pair) {
  left[0].pairs[i] = pair.large;
  left[1].pairs[i] = pair.small;
}

/// Features of a warp's 16 queries: rows are tokens, the depth is features. Words hold inputs j and (j + 8) mod 16 in
/// float, and lane 4g + c has words c and c + 4 of tokens g and g + 8: of every step the features c, c + 8, c + 4, c + 12,
/// at depths 2c, 2c + 1, 2c + 8, 2c + 9. The rows of the published state are in the same order, and keys for scores.
template <class Layout>
class SplitQueryFragments {
 public:
  /// `first` is the address of the first token's row.
  __device__ SplitQueryFragments(SharedAddress first, int lane)
      : row_(first + static_cast<unsigned>(lane / 4 * Layout::query_row + lane % 4 * 8)), quarter_(lane % 4) {}

  /// The inputs themselves.
  __device__ void inputs(SplitLeft& left) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 own = word(i, 0);
      set_pair(left, i, split(own.x, own.y));
    }
  }
  /// Loads the inputs, of which `products` are formed.
  __device__ void load() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      own_[i] = word(i, 0);
    }
  }
  /// Loads the inputs that are `shift` further on.
  __device__ void load(int shift) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      other_[i] = word(i, shift);
    }
  }
  /// Products with what was loaded, formed in float: that is more exact than products of terms.
  __device__ void products(SplitLeft& left) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      set_pair(left, i, split(own_[i].x * other_[i].x, own_[i].y * other_[i].y));
    }
  }
  /// The products with inputs 8 further on, and the constant. What is in the other rows of the last 8 does not matter.
  __device__ void half(SplitLeft& left) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float second = i < 2 && quarter_ == 0 ? 1.0F : own_[i].y * other_[i].y;
      set_pair(left, i, split(own_[i].x * other_[i].x, second));
    }
  }

 private:
  [[nodiscard]] __device__ float2 word(int i, int shift) const {
    float2 numbers;
    asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];"
                 : "=f"(numbers.x), "=f"(numbers.y)
                 : "r"(row_ + static_cast<unsigned>(i % 2 * 8 * Layout::query_row + i / 2 * 32 + shift * 8))
                 : "memory");
    return numbers;
  }

  SharedAddress row_;
  int quarter_;
  float2 own_[4];
  float2 other_[4];
};

/// Features of keys, transposed: rows are 16 features, one step of them, the depth is 16 tokens. Lane 4g + c has those of
/// features g and g + 8, and of tokens 2c, 2c + 1, 2c + 8, 2c + 9.
template <class Layout>
class SplitKeyFragments {
 public:
  /// Features 16·step …, which are 0 past the last, from token `first` of the chunk on. `step` is warp-uniform.
  __device__ SplitKeyFragments(int step, int first, int lane) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int input = lane / 4 + 8 * h;
      int own = input;
      int other = Layout::linear_factor;
      if (step <= Layout::half_step) {
        other = (input + step) % Layout::input_dim;
      }
      if (step > Layout::linear_step || (step == Layout::half_step && h == 1)) {
        own = step == Layout::half_step && lane / 4 == 0 ? Layout::one : Layout::zero;
        other = Layout::one;
      }
      const auto tokens = Layout::keys + static_cast<unsigned>((first / 2 + lane % 4) * Layout::key_row);
      own_[h] = tokens + own * 8;
      other_[h] = tokens + other * 8;
    }
  }

  /// Loads the inputs of tokens 16k … after the first.
  __device__ void load(int k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto tokens = static_cast<unsigned>((8 * k + i / 2 * 4) * Layout::key_row);
      a_[i] = load_split(own_[i % 2] + tokens);
      b_[i] = load_split(other_[i % 2] + tokens);
    }
  }
  /// The features of what was loaded.
  __device__ void features(SplitLeft& left) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      set_pair(left, i, a_[i] * b_[i]);
    }
  }
  /// Goes on to the next 64 tokens.
  __device__ void advance() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      own_[h] += 32 * Layout::key_row;
      other_[h] += 32 * Layout::key_row;
    }
  }

 private:
  SharedAddress own_[2];
  SharedAddress other_[2];
  SplitPair a_[4];
  SplitPair b_[4];
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
