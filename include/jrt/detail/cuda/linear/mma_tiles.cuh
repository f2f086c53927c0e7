// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_pipeline.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/mma.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/linear/expand.cuh"
#include "jrt/numeric.hpp"

/// Tiles of tokens in shared memory, as terms of bfloat16, for the matrix unit.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// [terms][tokens][stride] values. Rows are an odd number of 16-byte accesses long, so that eight of them touch all banks.
template <int terms_, int tokens_, int columns_>
struct TermTile {
  static constexpr int terms = terms_;
  static constexpr int tokens = tokens_;
  static constexpr int columns = columns_;  // a multiple of 16
  static constexpr int stride = columns + 8;
  static constexpr int elements = terms * tokens_ * stride;
  static_assert(columns % 16 == 0);

  SharedNumbers data;

  /// Tile `index` of several in a row.
  [[nodiscard]] __device__ TermTile stage(int index) const { return {data + index * elements}; }

  [[nodiscard]] __device__ SharedNumbers at(int term, int token, int column) const {
    return data + (term * tokens_ + token) * stride + column;
  }

  /// Stores eight neighbouring values of a token.
  __device__ void store(int token, int column, const float (&numbers)[8]) const {
    Pair packed[terms][4];
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
      store_pairs(at(term, token, column), packed[term]);
    }
  }
  __device__ void load(int token, int column, float* numbers) const {
    Terms<terms> pairs[4];
#pragma unroll
    for (int term = 0; term < terms; ++term) {
      Pair packed[4];
      load_pairs(packed, at(term, token, column));
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

/// Rows of consecutive tokens of one head: `dim` elements each, `stride` apart.
template <class Element>
struct Rows {
  const Element* first = nullptr;
  std::int64_t stride = 0;
  int tokens = 0;
  int zero_rows = 0;     // leading rows that are treated as zero
  bool aligned = false;  // each starts at a multiple of 16 bytes
};

/// Issues the loads of rows; the tile's other values become 0. Complete after the next wait for asynchronous copies and a
/// barrier.
template <int threads, int dim, class Tile, class Element>
__device__ void read_rows(const Tile& tile, const Rows<Element>& rows, int thread, int wanted_columns = dim) {
  constexpr int vectors = Tile::columns / 8;
  // Where whole rows of the tile fill a round of all threads, a thread keeps its column.
  constexpr bool keeps_column = threads % vectors == 0;
#pragma unroll 2
  for (int i = thread; i < Tile::tokens * vectors; i += threads) {
    const int t = i / vectors;
    const int column = (keeps_column ? thread : i) % vectors * 8;
    const bool there = t < rows.tokens && t >= rows.zero_rows;
    const Element* const from = rows.first + t * rows.stride + column;
    if (std::is_same_v<Element, BFloat16> && dim % 8 == 0 && rows.aligned) {
      const bool copied = there && column < wanted_columns;
      __pipeline_memcpy_async(tile.at(0, t, column).pointer(), copied ? from : rows.first, 16, copied ? 0 : 16);
      continue;
    }
    const int wanted = there ? wanted_columns - column : 0;
    Vector<Element, 8> elements{};
    if (rows.aligned && wanted >= 8) {
      elements = load_vector<8>(from);
    } else {
      for (int e = 0; e < 8; ++e) {
        if (e < wanted) {
          elements[e] = from[e];
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

/// Features of one vector, in groups of eight, of which this call computes part `part` of `parts`. `store(r, numbers)`
/// takes rows r … r + 7; rows after the map's last are 0. `part` is warp-uniform.
template <Side side, int rows, int parts, class Map, class Store>
__device__ void expand_to(const Map& map, const float* x, std::int64_t position, int part, const Store& store) {
  if constexpr (is_taylor2<Map>) {
    // As Taylor2 defines it, with the scale of products applied to x beforehand. Unrolled at compile time: every index is a
    // constant, and x stays in registers.
    using Packing = typename Map::RowPacking;
    constexpr int d = Map::input_dim;
    constexpr float pair_weight = side == Side::query && !Packing::stores_pairs_twice ? 2 : 1;
    float scaled[d];
#pragma unroll
    for (int i = 0; i < d; ++i) {
      scaled[i] = x[i] * (static_cast<float>(Map::product_scale) * pair_weight);
    }
    const auto feature = [&](TaylorRow row) {
      if (row.first < 0) {
        return 1.0F;
      }
      if (row.second < 0) {
        return x[row.first] * static_cast<float>(Map::linear_scale);
      }
      const float product = scaled[row.first] * x[row.second];
      return row.first == row.second ? product / pair_weight : product;
    };
    [&]<int... group>(std::integer_sequence<int, group...>) {
      (
          [&] {
            if (group * parts / (rows / 8) != part) {
              return;
            }
            float numbers[8];
#pragma unroll
            for (int e = 0; e < 8; ++e) {
              const int r = group * 8 + e;
              numbers[e] = r < Map::feature_dim ? feature(Packing::template row<d>(r)) : 0.0F;
            }
            store(group * 8, numbers);
          }(),
          ...);
    }
    (std::make_integer_sequence<int, rows / 8>());
  } else if (part == 0) {
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

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
