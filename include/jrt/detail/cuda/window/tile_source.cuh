// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_pipeline.h>

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/window/sequence.cuh"
#include "jrt/detail/cuda/window/tile_layout.cuh"
#include "jrt/detail/integer.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Tiles of keys and values, loaded to shared memory by all threads of a block.
template <WindowConfig Config>
struct WindowTileSource {
  using Layout = WindowTileLayout<Config>;
  using Element = typename Config::Element;

  const WindowCall<Config>& call;
  const WindowSequence<Config>& sequence;
  Element* shared;

  [[nodiscard]] __device__ Element* key_tile(int stage) const { return shared + stage * Layout::stage_elements; }
  [[nodiscard]] __device__ Element* value_tile(int stage) const {
    return key_tile(stage) + Layout::tile_keys * Layout::key_stride;
  }

  /// Issues the loads of a tile of keys and values to shared memory; 0 for tokens outside the range.
  __device__ void fetch(std::int64_t begin, int tile, int tiles, const TokenRange& range) const {
    if (tile < tiles) {
      const std::int64_t first = begin + std::int64_t{tile} * Layout::tile_keys;
      Element* const keys = key_tile(tile % Layout::stages);
      Element* const values = value_tile(tile % Layout::stages);
      const WindowKeys<Config>& source = sequence.keys;
      if (first >= 0 && first + Layout::tile_keys <= range.end) {
        // All of them are tokens of this call.
        const Element* const key = source.keys + first * source.key_stride;
        const Element* const value = source.values + first * source.value_stride;
        copy_rows<Config::head_dim>(
            keys, [&](int row) { return key + row * source.key_stride; }, Layout::tile_keys);
        copy_rows<Config::value_dim>(
            values, [&](int row) { return value + row * source.value_stride; }, Layout::tile_keys);
      } else {
        const int rows = static_cast<int>(smaller<std::int64_t>(Layout::tile_keys, range.end - first));
        copy_rows<Config::head_dim>(
            keys, [&](int row) { return source.key(first + row); }, rows);
        copy_rows<Config::value_dim>(
            values, [&](int row) { return source.value(first + row); }, rows);
      }
    }
    __pipeline_commit();
  }

  /// Rotates keys of this call in place, and rounds them as the cache will hold them.
  __device__ void rotate_keys(std::int64_t first, int stage, std::int64_t end) const {
    if constexpr (Config::Rotary::rotates) {
      constexpr int half = Config::Rotary::half_dim;
      Element* const keys = key_tile(stage);
      for (int i = static_cast<int>(threadIdx.x); i < Layout::tile_keys * half; i += Layout::threads) {
        const std::int64_t token = first + i / half;
        if (token < end && !WindowKeys<Config>::is_rotated(token)) {
          Element* const number = keys + i / half * Layout::key_stride + i % half;
          float a = convert<float>(number[0]);
          float b = convert<float>(number[half]);
          rotate_pair(rotation_for<Element>(call.rotary, sequence.keys.position(token), i % half), a, b);
          number[0] = convert<Element>(a);
          number[half] = convert<Element>(b);
        }
      }
      __syncthreads();
    }
  }

 private:
  /// Issues the loads of `count` rows from `row_of(row)` to a tile, whose other rows become 0.
  template <int dim, class RowOf>
  static __device__ void copy_rows(Element* tile, const RowOf& row_of, int count) {
    constexpr int parts = dim / 8;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < Layout::tile_keys * parts; i += Layout::threads) {
      const int row = i / parts;
      const int column = i % parts * 8;
      const bool exists = row < count;
      __pipeline_memcpy_async(tile + row * (dim + Layout::padding) + column, row_of(exists ? row : 0) + column, 16,
                              exists ? 0 : 16);
    }
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
