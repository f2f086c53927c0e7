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
      : shared_(shared_address(shared)), first_column_(slice * Layout::columns) {}

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

  /// The keys and values of a run of tokens that are still to be read. A KeySource would take more registers.
  struct Run {
    const Element* key;
    const Element* value;  // the slice's first column
    std::int64_t tokens;
    std::int64_t zero_keys;
    std::int64_t key_stride;
    std::int64_t value_stride;
    bool keys_aligned;
    bool values_aligned;

    /// Tokens of the next chunk.
    [[nodiscard]] __device__ int next() const { return static_cast<int>(clamped(tokens, 0, chunk)); }
  };
  __device__ Run run_of(const KeySource<Element>& source, const TokenRange& range) const {
    return {source.key_row(range.begin), source.value_row(range.begin) + first_column_,
            range.end - range.begin,     source.zero_keys - range.begin,
            source.key.token_stride,     source.value.token_stride,
            aligned(source.key),         aligned(source.value)};
  }

  /// Reads the next chunk and asks the second-level cache for the one after it.
  __device__ void read_next(Run& run) {
    const int tokens = run.next();
    read_values(run, tokens);
    read_inputs<chunk, threads>(shared_ + Layout::keys, run.key, run.key_stride, tokens,
                                static_cast<int>(clamped(run.zero_keys, 0, chunk)), run.keys_aligned, thread());
    run.key += chunk * run.key_stride;
    run.value += chunk * run.value_stride;
    run.tokens -= chunk;
    run.zero_keys -= chunk;
    prefetch(run);
  }

  /// Descriptor of 16 rows of blocks of 8 x 8 numbers.
  static __device__ std::uint64_t blocks_of(SharedAddress first) {
    return MatrixDescriptor(first, Layout::row_block, 128, Swizzle::none).word();
  }
  [[nodiscard]] __device__ SharedAddress values(int term, int token) const {
    return shared_ + Layout::values + static_cast<unsigned>(term * Layout::value_term + token / 8 * Layout::row_block);
  }
  [[nodiscard]] __device__ SharedAddress states(int term, int step) const {
    return shared_ + Layout::states + static_cast<unsigned>(term * Layout::state_term + step * 2 * Layout::row_block);
  }

  SharedAddress shared_;
  int first_column_;

 private:
  static __device__ void store_numbers(SharedAddress to, const float (&numbers)[4]) {
    asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};"
                 :
                 : "r"(to), "f"(numbers[0]), "f"(numbers[1]), "f"(numbers[2]), "f"(numbers[3])
                 : "memory");
  }

  static __device__ void prefetch(const Run& run) {
    constexpr int line = 128 / static_cast<int>(sizeof(Element));
    for (int t = thread(); t < run.next(); t += threads) {
      prefetch(run.key + t * run.key_stride);
      const Element* const value = run.value + t * run.value_stride;
#pragma unroll
      for (int c = 0; c < Layout::columns; c += line) {
        prefetch(value + c);
      }
    }
  }
  static __device__ void prefetch(const void* address) {
    asm volatile("prefetch.global.L2 [%0];" : : "l"(address));
  }

  /// Values of a chunk, rounded to terms, and the column of ones. Neighbouring threads take rows of a block: their stores
  /// touch all banks.
  __device__ void read_values(const Run& run, int tokens) {
    constexpr int blocks = Layout::columns / 8;
#pragma unroll 4
    for (int p = thread(); p < chunk * blocks; p += threads) {
      const int t = p / (8 * blocks) * 8 + p % 8;
      const int block = p / 8 % blocks;
      const int wanted = t < tokens ? Format::columns - first_column_ - 8 * block : 0;
      const Element* const from = run.value + t * run.value_stride + 8 * block;
      Vector<Element, 8> elements{};
      if (run.values_aligned && wanted >= 8) {
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
    for (int t = thread(); t < chunk; t += threads) {
      Pair pairs[terms][4] = {};
      pairs[0][0] = t < tokens ? 0x3f80 : 0;  // 1, 0, …
      store_row(t, blocks, pairs);
    }
  }
  __device__ void store_row(int token, int block, const Pair (&pairs)[terms][4]) const {
#pragma unroll
    for (int term = 0; term < terms; ++term) {
      store_pairs(SharedNumbers::at(values(term, token) + static_cast<unsigned>(block * 128 + token % 8 * 16)),
                  pairs[term]);
    }
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
