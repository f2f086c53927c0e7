// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/mma.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/linear/sm90/warpgroup_layout.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// A chunk of tokens in shared memory: how WarpgroupEngine's threads bring it there, and how the matrix unit finds it.
template <class Config>
class WarpgroupChunk {
 protected:
  using Layout = WarpgroupLayout<Config>;
  using Element = typename Layout::Element;
  using Format = typename Layout::Format;
  static constexpr int terms = Layout::terms;
  static constexpr int chunk = Layout::chunk;
  static constexpr int threads = Layout::threads;

  __device__ WarpgroupChunk(void* shared, int slice)
      : kept_(static_cast<volatile Kept*>(shared)), first_column_(slice * Layout::columns) {}

  static __device__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }

  static __device__ bool aligned(const TensorView<const Element>& view) {
    return rows_aligned(view.data, view.batch_stride, view.token_stride, view.head_stride);
  }

  /// Rows of inputs from `from` on, by `readers` threads; those outside of [zero_rows, tokens) become 0.
  template <int rows, int readers>
  static __device__ void read_inputs(SharedAddress to, const Element* from, std::int64_t stride, int tokens, int zero_rows,
                                     bool is_aligned, int reader) {
    constexpr int d = Layout::input_dim;
    constexpr int pieces = d / 4;
#pragma unroll 4
    for (int p = reader; p < rows * pieces; p += readers) {
      const int t = p / pieces;
      const int c = p % pieces * 4;
      float numbers[4] = {};
      if (t < tokens && t >= zero_rows) {
        const Element* const row = from + t * stride + c;
        Vector<Element, 4> elements;
        if (is_aligned) {
          elements = load_vector<4>(row);
        } else {
          for (int e = 0; e < 4; ++e) {
            elements[e] = row[e];
          }
        }
        for (int e = 0; e < 4; ++e) {
          numbers[e] = convert<float>(elements[e]);
        }
      }
      const SharedAddress row = to + static_cast<unsigned>(t * Layout::row_bytes + c * 4);
      store_numbers(row, numbers);
      if (c < d / 2) {
        store_numbers(row + d * 4, numbers);
      }
    }
  }

  /// Where a run of tokens is. In registers it would displace a part of the state.
  struct Kept {
    const Element* key;
    const Element* value;  // the slice's first column
    std::int64_t key_stride;
    std::int64_t value_stride;
    std::int64_t tokens;
    std::int64_t zero_keys;
    std::int64_t row;    // of the batch,
    std::int64_t token;  // first token
    std::int64_t head;   // and head of the first queries
    bool keys_aligned;
    bool values_aligned;
  };
  static_assert(sizeof(Kept) <= Layout::normaliser - Layout::base);

  /// To be followed by a barrier.
  __device__ void keep(const KeySource<Element>& source, const TokenRange& range, int query_group) const {
    if (thread() == 0) {
      kept_->key = source.key_row(range.begin);
      kept_->value = source.value_row(range.begin) + first_column_;
      kept_->key_stride = source.key.token_stride;
      kept_->value_stride = source.value.token_stride;
      kept_->tokens = range.end - range.begin;
      kept_->zero_keys = source.zero_keys - range.begin;
      kept_->row = source.span.batch_row;
      kept_->token = source.span.first_token + range.begin;
      kept_->head = source.head * query_group;
      kept_->keys_aligned = aligned(source.key);
      kept_->values_aligned = aligned(source.value);
    }
  }
  /// Tokens of the chunk that begins `begin` tokens after the first.
  [[nodiscard]] __device__ int tokens_from(std::int64_t begin) const {
    return static_cast<int>(clamped(kept_->tokens - begin, 0, chunk));
  }

  /// Reads a chunk and asks the second-level cache for the one after it.
  __device__ void read_chunk(std::int64_t begin) const {
    const int tokens = tokens_from(begin);
    read_values(begin, tokens);
    const std::int64_t stride = kept_->key_stride;
    read_inputs<chunk, threads>(Layout::keys, kept_->key + begin * stride, stride, tokens,
                                static_cast<int>(clamped(kept_->zero_keys - begin, 0, chunk)), kept_->keys_aligned,
                                thread());
    prefetch(begin + chunk);
  }

  /// Descriptor of 16 rows of blocks of 8 x 8 numbers.
  static __device__ std::uint64_t blocks_of(SharedAddress first) {
    return MatrixDescriptor(first, Layout::row_block, 128, Swizzle::none).word();
  }
  static __device__ SharedAddress values(int term, int token) {
    return Layout::values + static_cast<unsigned>(term * Layout::value_term + token / 8 * Layout::row_block);
  }
  static __device__ SharedAddress states(int term, int step) {
    return Layout::states + static_cast<unsigned>(term * Layout::state_term + step * 2 * Layout::row_block);
  }

  static __device__ void store_numbers(SharedAddress to, const float (&numbers)[4]) {
    asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};"
                 :
                 : "r"(to), "f"(numbers[0]), "f"(numbers[1]), "f"(numbers[2]), "f"(numbers[3])
                 : "memory");
  }

  volatile Kept* kept_;
  int first_column_;

 private:
  __device__ void prefetch(std::int64_t begin) const {
    constexpr int line = 128 / static_cast<int>(sizeof(Element));
    const int t = thread();
    if (t < tokens_from(begin)) {
      prefetch(kept_->key + (begin + t) * kept_->key_stride);
      const Element* const value = kept_->value + (begin + t) * kept_->value_stride;
#pragma unroll
      for (int c = 0; c < Layout::columns; c += line) {
        prefetch(value + c);
      }
    }
  }
  static __device__ void prefetch(const void* address) {
    asm volatile("prefetch.global.L2 [%0];" : : "l"(address));
  }

  /// Values of a chunk, rounded to terms. Neighbouring threads take rows of a block: their stores touch all banks.
  __device__ void read_values(std::int64_t begin, int tokens) const {
    constexpr int blocks = Layout::width / 8;
    const bool is_aligned = kept_->values_aligned;
    const std::int64_t stride = kept_->value_stride;
    const Element* const first = kept_->value + begin * stride;
#pragma unroll 4
    for (int p = thread(); p < chunk * blocks; p += threads) {
      const int t = p / (8 * blocks) * 8 + p % 8;
      const int block = p / 8 % blocks;
      const int wanted = t < tokens ? Format::columns - first_column_ - 8 * block : 0;
      const Element* const from = first + t * stride + 8 * block;
      Vector<Element, 8> elements{};
      if (is_aligned && wanted >= 8) {
        elements = load_vector<8>(from);
      } else {
        for (int e = 0; e < 8; ++e) {
          if (e < wanted) {
            elements[e] = from[e];
          }
        }
      }
      Pair pairs[terms][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto rounded = Terms<terms>::of(convert<float>(elements[2 * i]), convert<float>(elements[2 * i + 1]));
#pragma unroll
        for (int term = 0; term < terms; ++term) {
          pairs[term][i] = rounded.pairs[term];
        }
      }
      store_row(t, block, pairs);
    }
  }
  static __device__ void store_row(int token, int block, const Pair (&pairs)[terms][4]) {
#pragma unroll
    for (int term = 0; term < terms; ++term) {
      store_pairs(SharedNumbers::at(values(term, token) + static_cast<unsigned>(block * 128 + token % 8 * 16)),
                  pairs[term]);
    }
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
