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

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
