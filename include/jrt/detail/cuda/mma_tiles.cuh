// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_pipeline.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "jrt/detail/cuda/expand.cuh"
#include "jrt/detail/cuda/mma.cuh"
#include "jrt/detail/cuda/vector.cuh"
#include "jrt/numeric.hpp"

/// Tiles of tokens in shared memory, as terms of bfloat16, for the matrix unit.
namespace jrt::detail::cuda {

/// [terms][tokens][stride] numbers. Rows are an odd number of 16-byte accesses long, so that eight of them touch all banks.
template <int terms_, int tokens_, int columns_>
struct TermTile {
  static constexpr int terms = terms_;
  static constexpr int columns = columns_;  // a multiple of 16
  static constexpr int stride = columns + 8;
  static constexpr int elements = terms * tokens_ * stride;
  static_assert(columns % 16 == 0);

  __nv_bfloat16* data = nullptr;

  /// Tile `index` of several that lie one after the other.
  [[nodiscard]] __device__ TermTile stage(int index) const { return {data + index * elements}; }

  [[nodiscard]] __device__ __nv_bfloat16* at(int term, int token, int column) const {
    return data + (term * tokens_ + token) * stride + column;
  }

  /// Eight neighbouring numbers of a token.
  __device__ void store(int token, int column, const float (&numbers)[8]) const {
    Vector<Pair, 4> packed[terms];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto pair = Terms<terms>::of(numbers[2 * i], numbers[2 * i + 1]);
#pragma unroll
      for (int term = 0; term < terms; ++term) {
        packed[term][i] = pair.pairs[term];
      }
    }
#pragma unroll
    for (int term = 0; term < terms; ++term) {
      store_vector(reinterpret_cast<Pair*>(at(term, token, column)), packed[term]);
    }
  }
  __device__ void load(int token, int column, float* numbers) const {
    Terms<terms> pairs[4];
#pragma unroll
    for (int term = 0; term < terms; ++term) {
      const auto packed = load_vector<4>(reinterpret_cast<const Pair*>(at(term, token, column)));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        pairs[i].pairs[term] = packed[i];
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 both = pairs[i].sum();
      numbers[2 * i] = both.x;
      numbers[2 * i + 1] = both.y;
    }
  }
};

/// Asks for `tokens` rows of `dim` elements, of which row t starts at `row(t)`; the tile's other numbers become 0, and so do
/// rows before `zero_rows`. Complete after the next wait for asynchronous copies and a barrier. `aligned`: all rows start at
/// a multiple of 16 bytes.
template <int tile_tokens, class Tile, class Element, class Row>
__device__ void read_rows(const Tile& tile, int tokens, std::int64_t zero_rows, int dim, bool aligned, const Element* valid,
                          const Row& row) {
  constexpr int vectors = Tile::columns / 8;
  for (int i = static_cast<int>(threadIdx.x); i < tile_tokens * vectors; i += static_cast<int>(blockDim.x)) {
    const int t = i / vectors;
    const int column = i % vectors * 8;
    const int wanted = t < tokens && t >= zero_rows ? dim - column : 0;
    if (std::is_same_v<Element, BFloat16> && aligned && (wanted <= 0 || wanted >= 8)) {
      __pipeline_memcpy_async(tile.at(0, t, column), wanted > 0 ? row(t) + column : valid, 16, wanted > 0 ? 0 : 16);
      continue;
    }
    Vector<Element, 8> elements{};
    if (aligned && wanted >= 8) {
      elements = load_vector<8>(row(t) + column);
    } else {
      for (int e = 0; e < 8; ++e) {
        if (e < wanted) {
          elements[e] = row(t)[column + e];
        }
      }
    }
    float numbers[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      numbers[e] = convert<float>(elements[e]);
    }
    tile.store(t, column, numbers);
  }
}

/// Features of one vector, in groups of eight. `store(r, numbers)` takes rows r … r + 7; rows behind the map's are 0.
template <Side side, int rows, class Map, class Store>
__device__ void expand_to(const Map& map, const float* x, std::int64_t position, const Store& store) {
  if constexpr (is_taylor2<Map>) {
    // Unrolled at compile time: every index is a constant, and x stays in registers.
    [&]<int... group>(std::integer_sequence<int, group...>) {
      (
          [&] {
            float numbers[8];
#pragma unroll
            for (int e = 0; e < 8; ++e) {
              const int r = group * 8 + e;
              numbers[e] = r < Map::feature_dim
                               ? taylor_feature<side, Map::input_dim, typename Map::RowPacking>(x, r)
                               : 0.0F;
            }
            store(group * 8, numbers);
          }(),
          ...);
    }
    (std::make_integer_sequence<int, rows / 8>());
  } else {
    float features[rows];
    expand_vector<side>(map, x, features, position);
    for (int r = Map::feature_dim; r < rows; ++r) {
      features[r] = 0.0F;
    }
#pragma unroll
    for (int r = 0; r < rows; r += 8) {
      float numbers[8];
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        numbers[e] = features[r + e];
      }
      store(r, numbers);
    }
  }
}

}  // namespace jrt::detail::cuda
