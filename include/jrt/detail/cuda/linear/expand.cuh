// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/policy/feature_map.hpp"
#include "jrt/policy/taylor.hpp"

/// Expansion of vectors by the threads of a block.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

enum class Side { query, key };

template <Side side, class Map, class T>
__device__ void expand_vector(const Map& map, const T* x, T* features, std::int64_t position) {
  if constexpr (side == Side::query) {
    expand_query(map, x, features, position);
  } else {
    expand_key(map, x, features, position);
  }
}

/// Row `r` of a Taylor map's features.
template <Side side, class Map, class T>
__device__ T taylor_feature(const T* x, int r) {
  return side == Side::query ? Map::query_feature(x, r) : Map::key_feature(x, r);
}

/// Features of `count` vectors, by all threads of the block: vector i is at inputs + i·input_stride, its features go to
/// features + i·feature_stride, padded with 0 to `padded` rows. `position(i)` is its position, counted from 1.
///
/// In general a map is a function of a whole vector, so one thread expands each vector; rows of the Taylor map are
/// independent.
template <Side side, class Map, class T, class Position>
__device__ void expand_vectors(const Map& map, const T* inputs, int input_stride, T* features, int feature_stride,
                               int padded, int count, const Position& position) {
  const int threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (is_taylor2<Map>) {
    for (int index = thread; index < count * padded; index += threads) {
      const int i = index / padded;
      const int r = index - i * padded;
      features[i * feature_stride + r] =
          r < Map::feature_dim ? taylor_feature<side, Map>(inputs + i * input_stride, r) : T(0);
    }
  } else {
    for (int i = thread; i < count; i += threads) {
      T* const row = features + i * feature_stride;
      expand_vector<side>(map, inputs + i * input_stride, row, position(i));
      for (int r = Map::feature_dim; r < padded; ++r) {
        row[r] = T(0);
      }
    }
  }
}

template <class M>
inline constexpr bool is_symmetric_taylor2 = false;
template <int d>
inline constexpr bool is_symmetric_taylor2<Taylor2<d, SymmetricPacking>> = true;

/// Component `i` of J(x)ᵀ g for the symmetric Taylor map, g the gradient of its features.
template <Side side, class Map, class T>
__device__ T taylor_vjp(const T* x, const T* features_gradient, int i) {
  constexpr int d = Map::input_dim;
  T sum = 0;
  for (int j = 0; j < d; ++j) {
    const T gradient = features_gradient[SymmetricPacking::pair_row<d>(i, j)] * x[j];
    sum += side == Side::key && i != j ? gradient : T(2) * gradient;
  }
  return sum * static_cast<T>(Map::product_scale) + features_gradient[i] * static_cast<T>(Map::linear_scale);
}

/// x_gradient[i] += J(x_i)ᵀ (gradient of its features), by all threads of the block; rows as in `expand_vectors`, gradients
/// of inputs as far apart as inputs.
template <Side side, class Map, class T, class Position>
__device__ void vectors_vjp(const Map& map, const T* inputs, int input_stride, const T* features_gradient,
                            int feature_stride, T* inputs_gradient, int count, const Position& position) {
  const int threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (is_symmetric_taylor2<Map>) {
    for (int index = thread; index < count * Map::input_dim; index += threads) {
      const int t = index / Map::input_dim;
      const int i = index % Map::input_dim;
      inputs_gradient[t * input_stride + i] +=
          taylor_vjp<side, Map>(inputs + t * input_stride, features_gradient + t * feature_stride, i);
    }
  } else {
    for (int t = thread; t < count; t += threads) {
      T gradient[Map::input_dim];
      const T* const x = inputs + t * input_stride;
      const T* const of_features = features_gradient + t * feature_stride;
      if constexpr (side == Side::query) {
        expand_query_vjp(map, x, of_features, gradient, position(t));
      } else {
        expand_key_vjp(map, x, of_features, gradient, position(t));
      }
      for (int i = 0; i < Map::input_dim; ++i) {
        inputs_gradient[t * input_stride + i] += gradient[i];
      }
    }
  }
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
