// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/mma.cuh"
#include "jrt/detail/cuda/linear/sm90/warpgroup_layout.cuh"

/// Features of the Taylor map as left operands of the matrix unit, formed in registers from rows of inputs in shared
/// memory.
///
/// In the symmetric order (policy/taylor.hpp) every step of 16 features is 16 neighbouring inputs times the 16 inputs that
/// lie s places further on, times a constant; the first steps are the inputs themselves, the last one holds the constant 1.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// A number in shared memory.
__device__ inline float load_number(SharedAddress from) {
  float number;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(number) : "r"(from) : "memory");
  return number;
}

/// A left operand from its values, rounded to terms: numbers[i][e] is element e of pair i.
template <int terms>
__device__ void round_left(LeftFragment (&left)[terms], const float (&numbers)[4][2]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto rounded = Terms<terms>::of(numbers[i][0], numbers[i][1]);
#pragma unroll
    for (int term = 0; term < terms; ++term) {
      left[term].pairs[i] = rounded.pairs[term];
    }
  }
}

/// Features of a warp's 16 queries: rows are tokens, the depth is features. Lane 4g + c has those of tokens g and g + 8,
/// and of every step the features c, c + 4, c + 8, c + 12, at depths 2c, 2c + 1, 2c + 8, 2c + 9: an order in which no two
/// lanes read the same bank. The rows of the published state are in the same order.
template <class Layout>
class QueryFragments {
  using Map = typename Layout::Map;
  static constexpr int terms = Layout::terms;
  static constexpr int d = Layout::input_dim;
  static constexpr auto pair_scale = static_cast<float>(2 * Map::product_scale);

 public:
  /// `first` is the address of the first token's row.
  __device__ QueryFragments(SharedAddress first, int lane)
      : row_(first + lane / 4 * Layout::row_bytes + lane % 4 * 4), quarter_(lane % 4) {
#pragma unroll
    for (int h = 0; h < Layout::input_steps; ++h) {
      load(own_[h], 16 * h);
    }
  }

  /// The inputs themselves, for scores.
  template <int h>
  __device__ void inputs(LeftFragment (&left)[terms]) const {
    round_left<terms>(left, own_[h]);
  }
  /// The linear features of inputs 16h … 16h + 15.
  template <int h>
  __device__ void linear(LeftFragment (&left)[terms]) const {
    float numbers[4][2];
    scale(numbers, own_[h], static_cast<float>(Map::linear_scale));
    round_left<terms>(left, numbers);
  }
  /// Products of inputs 16h … 16h + 15 with those `shift` further on.
  template <int h>
  __device__ void products(LeftFragment (&left)[terms], int shift) const {
    float numbers[4][2];
    load(numbers, 16 * h + shift);
    const float factor = shift == 0 ? pair_scale / 2 : pair_scale;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        numbers[i][e] *= own_[h][i][e] * factor;
      }
    }
    round_left<terms>(left, numbers);
  }
  /// The last step: where d is 16, half a step of products d/2 apart; then the constant.
  __device__ void constant(LeftFragment (&left)[terms]) const {
    float numbers[4][2] = {};
    if constexpr (d == 16) {
      float other[4][2];
      load(other, d / 2);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          numbers[i][e] = other[i][e] * (own_[0][i][e] * pair_scale);
        }
      }
      numbers[2][0] = numbers[3][0] = quarter_ == 0 ? 1.0F : 0.0F;
    } else {
      numbers[0][0] = numbers[1][0] = quarter_ == 0 ? 1.0F : 0.0F;
    }
    round_left<terms>(left, numbers);
  }

 private:
  /// Inputs first + c, + 4, + 8, + 12 of both tokens.
  __device__ void load(float (&numbers)[4][2], int first) const {
    const SharedAddress from = row_ + 4 * static_cast<unsigned>(first);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        numbers[i][e] = load_number(from + i % 2 * 8 * Layout::row_bytes + i / 2 * 32 + e * 16);
      }
    }
  }
  static __device__ void scale(float (&scaled)[4][2], const float (&numbers)[4][2], float factor) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scaled[i][0] = numbers[i][0] * factor;
      scaled[i][1] = numbers[i][1] * factor;
    }
  }

  SharedAddress row_;
  int quarter_;
  float own_[Layout::input_steps][4][2];
};

/// Features of keys, transposed: rows are 16 features, one step of them, the depth is 16 tokens. Lane 4g + c has those of
/// features g and g + 8, and of tokens 2c, 2c + 1, 2c + 8, 2c + 9.
template <class Layout>
class KeyFragments {
  using Map = typename Layout::Map;
  static constexpr int terms = Layout::terms;
  static constexpr int d = Layout::input_dim;

 public:
  /// Features 16·step …, which are 0 past the map's last. `step` is warp-uniform.
  __device__ KeyFragments(int step, int lane) {
    linear_ = step < Layout::input_steps;
    const int block = linear_ ? 0 : smaller((step - Layout::input_steps) / Layout::input_steps, d / 2);
    const int h = step % Layout::input_steps;
    own_ = static_cast<unsigned>(lane % 4 * 2 * Layout::row_bytes + (16 * h + lane / 4) * 4);
    other_ = own_ + 4 * static_cast<unsigned>(block);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = 16 * step + lane / 4 + 8 * i;
      const auto scale = static_cast<float>(linear_ ? Map::linear_scale : Map::product_scale);
      scale_[i] = row < Map::feature_dim - 1 ? scale : 0.0F;
      constant_[i] = row == Map::feature_dim - 1 ? 1.0F : 0.0F;
    }
  }

  /// `first` is the address of the first of 16 tokens' rows.
  __device__ void features(LeftFragment (&left)[terms], SharedAddress first) const {
    // Without a branch: the compiler would not let products overlap.
    float numbers[4][2];
    float others[4][2];
    load(numbers, first + own_);
    load(others, first + other_);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float other = linear_ ? 1.0F : others[i][e];
        numbers[i][e] = fmaf(numbers[i][e] * scale_[i % 2], other, constant_[i % 2]);
      }
    }
    round_left<terms>(left, numbers);
  }

 private:
  static __device__ void load(float (&numbers)[4][2], SharedAddress from) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        numbers[i][e] = load_number(from + (i / 2 * 8 + e) * Layout::row_bytes + i % 2 * 32);
      }
    }
  }

  bool linear_;
  unsigned own_;
  unsigned other_;
  float scale_[2];
  float constant_[2];
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
