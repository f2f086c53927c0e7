// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/mma.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/linear/sm90/split_features.cuh"
#include "jrt/detail/cuda/linear/sm90/split_layout.cuh"
#include "jrt/detail/cuda/linear/sm90/warpgroup_tokens.cuh"
#include "jrt/detail/integer.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// A chunk of tokens in shared memory, as terms: how SplitEngine's threads bring it there, and how the matrix unit finds
/// it.
template <class Config>
class SplitChunk : protected WarpgroupTokens<Config, SplitLayout<Config>> {
  using Tokens = WarpgroupTokens<Config, SplitLayout<Config>>;

 protected:
  using Layout = SplitLayout<Config>;
  using Element = float;
  using Format = typename Layout::Format;
  static constexpr int terms = Layout::terms;
  static constexpr int chunk = Layout::chunk;
  static constexpr int threads = Layout::threads;

  template <int count>
  using Piece = typename Tokens::template Piece<count>;
  using Tokens::first_column_;
  using Tokens::kept_;
  using Tokens::lane;
  using Tokens::thread;
  using Tokens::tokens_from;

  __device__ SplitChunk(void* shared, int slice) : Tokens(shared, Layout::slices == 1 ? 0 : slice) {}

  /// A lane's part of a warp's 16 queries: inputs c … c + 3 and c + 8 … c + 11 of one.
  struct QueryPieces {
    Piece<4> low;
    Piece<4> high;

    /// `tokens` of the queries are there.
    __device__ void load(const float* from, std::int64_t stride, int tokens, bool is_aligned) {
      const int t = lane() / 2;
      const float* const row = from + t * stride + lane() % 2 * 4;
      low.load(row, t < tokens ? 4 : 0, is_aligned);
      high.load(row + 8, t < tokens ? 4 : 0, is_aligned);
    }
    __device__ void store(SharedAddress rows) const {
      const SharedAddress to = rows + static_cast<unsigned>(lane() / 2 * Layout::query_row + lane() % 2 * 32);
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        const float a = low.number(e) * Layout::query_scale;
        const float b = low.number(e + 1) * Layout::query_scale;
        const float c = high.number(e) * Layout::query_scale;
        const float d = high.number(e + 1) * Layout::query_scale;
        Tokens::store_numbers(to + e * 8, {a, c, b, d});
        Tokens::store_numbers(to + (8 + e) * 8, {c, a, d, b});
      }
    }
  };

  /// Stores what lies behind keys and the second term of ones. To be followed by a barrier.
  static __device__ void store_constants() {
    if (thread() < chunk / 2) {
      const SharedAddress row = Layout::keys + static_cast<unsigned>(thread() * Layout::key_row);
      constexpr float factor = static_cast<float>(Layout::Map::linear_scale) / Layout::key_scale;
      store_split(row + Layout::linear_factor * 8, split(factor, factor), split(1, 1));
      store_split(row + Layout::zero * 8, {}, {});
    }
    if (thread() < chunk) {
      store_pairs(SharedNumbers::at(block_of_values(1, thread(), Layout::columns / 8)), {0, 0, 0, 0});
    }
  }

  /// A thread's part of a chunk of keys on its way to shared memory: inputs c, c + 1 and c + 8, c + 9 of tokens t, t + 1.
  struct KeyPieces {
    Piece<2> of[2][2];
  };
  __device__ void load_keys(KeyPieces& keys, std::int64_t begin) const {
    const int thread = SplitChunk::thread() & 511;  // which tells the compiler that it is not negative
    const int tokens = tokens_from(begin);
    const bool keys_aligned = kept_->keys_aligned;
    const std::int64_t stride = kept_->key_stride;
    const auto zero_keys = static_cast<int>(clamped(kept_->zero_keys - begin, 0, chunk));
    const int t = key_token(thread);
    const float* const key = kept_->key + (begin + t) * stride + key_input(thread);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int wanted = t + i < tokens && t + i >= zero_keys ? 2 : 0;
      keys.of[i][0].load(key + i * stride, wanted, keys_aligned);
      keys.of[i][1].load(key + i * stride + 8, wanted, keys_aligned);
    }
  }

  /// Asks the second-level cache for a chunk's keys.
  __device__ void prefetch_keys(std::int64_t begin) const {
    const int t = SplitChunk::thread();
    if (t < tokens_from(begin)) {
      Tokens::prefetch(kept_->key + (begin + t) * kept_->key_stride);
    }
  }
  /// Copies a chunk's values to where store_values finds them, if they are aligned. Values of missing tokens are 0.
  __device__ void copy_values(std::int64_t begin) const {
    if (!kept_->values_aligned) {
      return;
    }
    const int thread = SplitChunk::thread() & 511;  // which tells the compiler that it is not negative
    const int tokens = tokens_from(begin);
    if (tokens == 0) {
      return;
    }
    const std::int64_t stride = kept_->value_stride;
    constexpr int parts = Layout::columns / 4;  // of a row
    const int room = Format::columns - first_column_;
    int t = thread / parts;
    int part = thread % parts;
    const float* const value = kept_->value + begin * stride;
#pragma unroll
    for (int i = 0; i < chunk * parts / threads; ++i) {
      const int c = 4 * part;
      const int wanted = t < tokens ? 4 * clamped(room - c, 0, 4) : 0;  // bytes
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                   :
                   : "r"(Layout::staged_values + static_cast<unsigned>(t * Layout::staged_row + c * 4)),
                     "l"(value + t * stride + (c < room ? c : 0)), "r"(wanted)
                   : "memory");
      t += threads / parts;
      part += threads % parts;
      if (part >= parts) {
        part -= parts;
        ++t;
      }
    }
  }
  /// Waits for this thread's copies; to be followed by a barrier.
  static __device__ void await_copies() {
    asm volatile("cp.async.wait_all;" : : : "memory");
  }

  /// Stores a chunk's values as terms.
  __device__ void store_values(std::int64_t begin) const {
    const int thread = SplitChunk::thread() & 511;  // which tells the compiler that it is not negative
    const int tokens = tokens_from(begin);
    constexpr int blocks = Layout::columns / 8;
    const auto for_pieces = [&](const auto& load) {
#pragma unroll
      for (int i = 0; i < ceil_div(chunk * blocks, threads); ++i) {
        // Neighbouring threads take rows of a block: their stores touch all banks.
        const int t = (thread + i * threads) / (8 * blocks) * 8 + thread % 8;
        const int block = (thread + i * threads) / 8 % blocks;
        if (chunk * blocks % threads == 0 || t < chunk) {
          Piece<8> piece;
          load(piece, t, block);
          store_value_terms(t, block, piece);
        }
      }
    };
    if (kept_->values_aligned) {
      for_pieces([](Piece<8>& piece, int t, int block) {
        const SharedAddress from = Layout::staged_values + static_cast<unsigned>(t * Layout::staged_row + block * 32);
        load_four(piece.words.values, from);
        load_four(piece.words.values + 4, from + 16);
      });
    } else {
      for_pieces([&](Piece<8>& piece, int t, int block) {
        piece.load(kept_->value + (begin + t) * kept_->value_stride + 8 * block,
                   t < tokens ? Format::columns - first_column_ - 8 * block : 0, false);
      });
    }
    if (thread < chunk) {
      const Pair ones = thread < tokens ? 0x3f803f80U : 0U;
      store_pairs(SharedNumbers::at(block_of_values(0, thread, blocks)), {ones, ones, ones, ones});
    }
  }
  /// Stores keys as terms.
  static __device__ void store_keys(const KeyPieces& keys) {
    const int thread = SplitChunk::thread() & 511;  // which tells the compiler that it is not negative
    store_key_terms(key_token(thread), key_input(thread), keys.of);
  }

  /// The first 16 tokens of values.
  static __device__ MatrixDescriptor values() {
    return {Layout::values, Layout::row_block, 128, Swizzle::none};
  }
  /// A step of the published state.
  static __device__ MatrixDescriptor states(int step) {
    return {Layout::states + static_cast<unsigned>(step * 2 * Layout::state_block), Layout::state_block, 128,
            Swizzle::none};
  }
  /// The first 64 keys for scores.
  static __device__ MatrixDescriptor score_keys() {
    return {Layout::score_keys, 128, 256, Swizzle::none};
  }

 private:
  static_assert(chunk * 2 == threads);
  // Two threads by four are in different banks when they store words.
  static __device__ int key_token(int thread) {
    return (thread / 16 * 4 + thread / 2 % 4) * 2;
  }
  static __device__ int key_input(int thread) {
    return (thread / 8 % 2 * 2 + thread % 2) * 2;
  }

  static __device__ void load_four(std::uint32_t* words, SharedAddress from) {
    asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(from)
                 : "memory");
  }

  /// Where columns 8·block … of a token's values are.
  static __device__ SharedAddress block_of_values(int term, int token, int block) {
    return Layout::values +
           static_cast<unsigned>(term * Layout::value_term + token / 8 * Layout::row_block + block * 128 + token % 8 * 16);
  }

  /// Eight columns of a token's values, rounded to terms.
  static __device__ void store_value_terms(int token, int block, const Piece<8>& piece) {
    Pair pairs[terms][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const SplitPair pair = split(piece.number(2 * i), piece.number(2 * i + 1));
      pairs[0][i] = pair.large;
      pairs[1][i] = pair.small;
    }
#pragma unroll
    for (int term = 0; term < terms; ++term) {
      store_pairs(SharedNumbers::at(block_of_values(term, token, block)), pairs[term]);
    }
  }

  /// Inputs c, c + 1, c + 8, c + 9 of tokens t, t + 1: words of two tokens, and, for scores, pairs of inputs 8 apart.
  static __device__ void store_key_terms(int t, int c, const Piece<2> (&keys)[2][2]) {
    SplitPair words[2][2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        words[h][i] = split(keys[0][h].number(i) * Layout::key_scale, keys[1][h].number(i) * Layout::key_scale);
      }
      store_split(Layout::keys + static_cast<unsigned>(t / 2 * Layout::key_row + (c + 8 * h) * 8), words[h][0],
                  words[h][1]);
    }
#pragma unroll
    for (int term = 0; term < terms; ++term) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const auto pair = [&](int i) {
          const Pair low = term == 0 ? words[0][i].large : words[0][i].small;
          const Pair high = term == 0 ? words[1][i].large : words[1][i].small;
          return __byte_perm(low, high, e == 0 ? 0x5410 : 0x7632);
        };
        const SharedAddress to = Layout::score_keys + static_cast<unsigned>(term * Layout::score_term + t / 8 * 256 +
                                                                            c / 4 * 128 + (t % 8 + e) * 16 + c % 4 * 4);
        asm volatile("st.shared.v2.b32 [%0], {%1,%2};" : : "r"(to), "r"(pair(0)), "r"(pair(1)) : "memory");
      }
    }
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
