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

__device__ inline void load_numbers(float (&numbers)[4], SharedAddress from) {
  asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(numbers[0]), "=f"(numbers[1]), "=f"(numbers[2]), "=f"(numbers[3])
               : "r"(from)
               : "memory");
}

/// A left operand from its values: numbers[i][e] is element e of pair i.
__device__ inline void round_left(LeftFragment& left, const float (&numbers)[4][2]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    left.pairs[i] = as_pair(__floats2bfloat162_rn(numbers[i][0], numbers[i][1]));
  }
}

/// Features of a warp's 16 queries from inputs 16h … 16h + 15 and those behind them: rows are tokens, the depth is
/// features. Lane 4g + c has those of tokens g and g + 8, and of every step the features c, c + 4, c + 8, c + 12, at depths
/// 2c, 2c + 1, 2c + 8, 2c + 9: an order in which no two lanes read the same bank. The rows of the published state are in
/// the same order. The products of features and z are added to `denominators`, this lane's shares for its two tokens.
template <class Layout>
class QueryFragments {
  using Map = typename Layout::Map;

 public:
  /// `first` is the address of the first token's row.
  __device__ QueryFragments(SharedAddress first, int h, int lane)
      : row_(first + static_cast<unsigned>(lane / 4 * Layout::row_bytes + (lane % 4 + 16 * h) * 4)), quarter_(lane % 4) {
    load(own_, 0);
  }

  /// The inputs themselves over √d, for scores.
  __device__ void inputs(LeftFragment& left) const {
    float numbers[4][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        numbers[i][e] =
            own_[i][e] * (static_cast<float>(Map::inverse_sqrt_dim) / (Layout::query_scale * Layout::key_scale));
      }
    }
    round_left(left, numbers);
  }
  /// Their linear features.
  __device__ void linear(LeftFragment& left, float (&denominators)[2], int step) const {
    float numbers[4][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        numbers[i][e] = own_[i][e] * (static_cast<float>(Map::linear_scale) / Layout::query_scale);
      }
    }
    add_denominators(numbers, denominators, step);
    round_left(left, numbers);
  }
  /// Their products with the inputs that are `shift` further on.
  __device__ void products(LeftFragment& left, float (&denominators)[2], int step, int shift) const {
    float numbers[4][2];
    load(numbers, shift);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      numbers[i][0] *= own_[i][0];
      numbers[i][1] *= own_[i][1];
    }
    add_denominators(numbers, denominators, step);
    round_left(left, numbers);
  }
  /// The last step: the constant.
  __device__ void constant(LeftFragment& left, float (&denominators)[2]) const {
    float numbers[4][2] = {};
    numbers[0][0] = numbers[1][0] = quarter_ == 0 ? 1.0F : 0.0F;
    add_denominators(numbers, denominators, Layout::feature_steps - 1);
    round_left(left, numbers);
  }

 private:
  __device__ void add_denominators(const float (&numbers)[4][2], float (&denominators)[2], int step) const {
    float z[4];
    load_numbers(z, Layout::normaliser + static_cast<unsigned>(step * 64 + quarter_ * 16));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        denominators[i % 2] = fmaf(numbers[i][e], z[i / 2 * 2 + e], denominators[i % 2]);
      }
    }
  }
  /// Inputs `shift` further on, of both tokens.
  __device__ void load(float (&numbers)[4][2], int shift) const {
    const SharedAddress from = row_ + 4 * static_cast<unsigned>(shift);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        numbers[i][e] = load_number(from + i % 2 * 8 * Layout::row_bytes + i / 2 * 32 + e * 16);
      }
    }
  }

  SharedAddress row_;
  int quarter_;
  float own_[4][2];
};

/// Features of keys, transposed: rows are 16 features, one step of them, the depth is 16 tokens. Lane 4g + c has those of
/// features g and g + 8, and of tokens 2c, 2c + 1, 2c + 8, 2c + 9.
template <class Layout>
class KeyFragments {
  using Map = typename Layout::Map;
  static constexpr int d = Layout::input_dim;

 public:
  /// Features 16·step …, which are 0 past the map's last. `step` is warp-uniform.
  __device__ KeyFragments(int step, int lane) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = 16 * step + lane / 4 + 8 * i;
      const int input = step % Layout::input_steps * 16 + lane / 4 + 8 * i;
      int own = input;
      int other = Layout::linear_factor;
      if (row >= Map::feature_dim - 1) {
        own = row == Map::feature_dim - 1 ? Layout::one : Layout::zero;
        other = Layout::one;
      } else if (row >= d) {
        other = input + (row - d) / d;
      }
      const int tokens = lane % 4 * 2 * Layout::row_bytes;
      own_[i] = static_cast<unsigned>(tokens + own * 4);
      other_[i] = static_cast<unsigned>(tokens + other * 4);
      constant_[i] = row == Map::feature_dim - 1;
    }
  }

  /// `first` is the address of the first of 16 tokens' rows. Adds this lane's features to `sums`.
  __device__ void features(LeftFragment& left, SharedAddress first, float (&sums)[2]) const {
    // Without a branch: the compiler would not let products overlap.
    float numbers[4][2];
    float others[4][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const SharedAddress token = first + (i / 2 * 8 + e) * Layout::row_bytes;
        numbers[i][e] = load_number(token + own_[i % 2]);
        others[i][e] = load_number(token + other_[i % 2]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        numbers[i][e] *= others[i][e];
        sums[i % 2] += numbers[i][e];
      }
    }
    round_left(left, numbers);
  }

  /// Whether row i of this lane's two is the constant feature.
  [[nodiscard]] __device__ bool is_constant(int i) const {
    return constant_[i];
  }

 private:
  unsigned own_[2];
  unsigned other_[2];
  bool constant_[2];
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
