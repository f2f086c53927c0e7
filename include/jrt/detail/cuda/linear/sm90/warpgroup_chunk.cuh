// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/mma.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/linear/sm90/warpgroup_features.cuh"
#include "jrt/detail/cuda/linear/sm90/warpgroup_layout.cuh"
#include "jrt/detail/cuda/linear/sm90/warpgroup_tokens.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// A chunk of tokens in shared memory: how WarpgroupEngine's threads bring it there, and how the matrix unit finds it.
template <class Config>
class WarpgroupChunk : protected WarpgroupTokens<Config, WarpgroupLayout<Config>> {
  using Tokens = WarpgroupTokens<Config, WarpgroupLayout<Config>>;

 protected:
  using Layout = WarpgroupLayout<Config>;
  using Element = typename Layout::Element;
  using Format = typename Layout::Format;
  static constexpr int chunk = Layout::chunk;
  static constexpr int threads = Layout::threads;

  template <int count>
  using Piece = typename Tokens::template Piece<count>;
  using Tokens::aligned;
  using Tokens::first_column_;
  using Tokens::keep;
  using Tokens::kept_;
  using Tokens::lane;
  using Tokens::prefetch;
  using Tokens::store_numbers;
  using Tokens::thread;
  using Tokens::Tokens;
  using Tokens::tokens_from;

  /// Stores four neighbouring inputs of a row, and again behind it if they are of its first half.
  static __device__ void store_inputs(SharedAddress rows, int t, int c, const Piece<4>& piece, float scale) {
    const SharedAddress to = rows + static_cast<unsigned>(t * Layout::row_bytes + c * 4);
    const float numbers[4] = {piece.number(0) * scale, piece.number(1) * scale, piece.number(2) * scale,
                              piece.number(3) * scale};
    store_numbers(to, numbers);
    if (c < Layout::input_dim / 2) {
      store_numbers(to + Layout::input_dim * 4, numbers);
    }
  }

  /// A warp's 16 queries, of which `tokens` are there.
  static __device__ void read_queries(SharedAddress rows, const Element* from, std::int64_t stride, int tokens,
                                      bool is_aligned) {
    const int lane = WarpgroupChunk::lane();
    constexpr int pieces = Layout::input_dim / 4;
    Piece<4> loaded[pieces / 2];
#pragma unroll
    for (int i = 0; i < pieces / 2; ++i) {
      const int p = i * 32 + lane;
      loaded[i].load(from + p / pieces * stride + p % pieces * 4, p / pieces < tokens ? 4 : 0, is_aligned);
    }
#pragma unroll
    for (int i = 0; i < pieces / 2; ++i) {
      const int p = i * 32 + lane;
      store_inputs(rows, p / pieces, p % pieces * 4, loaded[i], Layout::query_scale);
    }
  }

  /// Stores the factors behind keys. To be followed by a barrier.
  static __device__ void store_factors() {
    for (int t = thread(); t < chunk; t += threads) {
      store_numbers(Layout::keys + static_cast<unsigned>(t * Layout::row_bytes + Layout::linear_factor * 4),
                    {static_cast<float>(Layout::Map::linear_scale) / Layout::key_scale, 1, 0, 0});
    }
  }

  /// Reads a chunk of keys and values.
  __device__ void read_chunk(std::int64_t begin) const {
    const int thread = WarpgroupChunk::thread();
    const int tokens = tokens_from(begin);
    constexpr int blocks = Layout::width / 8;
    constexpr int value_pieces = ceil_div(chunk * blocks, threads);
    constexpr int row_pieces = Layout::input_dim / 4;
    constexpr int key_pieces = chunk * row_pieces / threads;
    static_assert(chunk * row_pieces % threads == 0);

    Piece<8> loaded_values[value_pieces];
    Piece<4> loaded_keys[key_pieces];
    const bool values_aligned = kept_->values_aligned;
    const std::int64_t value_stride = kept_->value_stride;
    const Element* const value = kept_->value + begin * value_stride;
    // Neighbouring threads take rows of a block: their stores touch all banks.
    const auto token_of = [&](int i) { return (thread + i * threads) / (8 * blocks) * 8 + thread % 8; };
    const auto block_of = [&](int i) { return (thread + i * threads) / 8 % blocks; };
#pragma unroll
    for (int i = 0; i < value_pieces; ++i) {
      const int t = token_of(i);
      const int column = 8 * block_of(i);
      loaded_values[i].load(value + t * value_stride + column, t < tokens ? Format::columns - first_column_ - column : 0,
                            values_aligned);
    }
    const bool keys_aligned = kept_->keys_aligned;
    const std::int64_t key_stride = kept_->key_stride;
    const Element* const key = kept_->key + begin * key_stride;
    const auto zero_keys = static_cast<int>(clamped(kept_->zero_keys - begin, 0, chunk));
#pragma unroll
    for (int i = 0; i < key_pieces; ++i) {
      const int p = thread + i * threads;
      const int t = p / row_pieces;
      loaded_keys[i].load(key + t * key_stride + p % row_pieces * 4, t < tokens && t >= zero_keys ? 4 : 0, keys_aligned);
    }
#pragma unroll
    for (int i = 0; i < value_pieces; ++i) {
      if (token_of(i) < chunk) {
        store_values(token_of(i), block_of(i), loaded_values[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < key_pieces; ++i) {
      const int p = thread + i * threads;
      store_inputs(Layout::keys, p / row_pieces, p % row_pieces * 4, loaded_keys[i], Layout::key_scale);
    }
  }

  /// Asks the second-level cache for a chunk.
  __device__ void prefetch(std::int64_t begin) const {
    constexpr int line = 128 / static_cast<int>(sizeof(Element));
    const int t = thread();
    if (t < tokens_from(begin)) {
      prefetch(kept_->key + (begin + t) * kept_->key_stride);
      const Element* const value = kept_->value + (begin + t) * kept_->value_stride;
#pragma unroll
      for (int c = 0; c < Layout::columns; c += line) {
        if (first_column_ + c < Format::columns) {
          prefetch(value + c);
        }
      }
    }
  }

  /// Descriptor of 16 rows of blocks of 8 x 8 numbers.
  static __device__ std::uint64_t blocks_of(SharedAddress first) {
    return MatrixDescriptor(first, Layout::row_block, 128, Swizzle::none).word();
  }
  static __device__ SharedAddress values(int token) {
    return Layout::values + static_cast<unsigned>(token / 8 * Layout::row_block);
  }
  static __device__ SharedAddress states(int step) {
    return Layout::states + static_cast<unsigned>(step * 2 * Layout::row_block);
  }

  /// Moves a group's last tile to shared memory, where it takes no registers, and back, if that is needed.
  static __device__ void move_aside(const float (&tile)[Layout::width / 2]) {
    if constexpr (Layout::sets_aside) {
#pragma unroll
      for (int i = 0; i < Layout::width / 2; i += 4) {
        store_numbers(aside(i), {tile[i], tile[i + 1], tile[i + 2], tile[i + 3]});
      }
    }
  }
  static __device__ void take_back(float (&tile)[Layout::width / 2]) {
    if constexpr (Layout::sets_aside) {
#pragma unroll
      for (int i = 0; i < Layout::width / 2; i += 4) {
        float numbers[4];
        load_numbers(numbers, aside(i));
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          tile[i + e] = numbers[e];
        }
      }
    }
  }
  static __device__ SharedAddress aside(int i) {
    return Layout::aside + static_cast<unsigned>((i / 4 * threads + thread()) * 16);
  }

 private:
  /// Eight columns of a token's values.
  static __device__ void store_values(int token, int block, const Piece<8>& piece) {
    store_pairs(SharedNumbers::at(values(token) + static_cast<unsigned>(block * 128 + token % 8 * 16)), piece.words.values);
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
