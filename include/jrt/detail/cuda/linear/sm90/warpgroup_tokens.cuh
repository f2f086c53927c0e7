// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/instructions.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/shared/linear/denominators.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/mixer/linear_attention.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// A run of tokens that a block of WarpgroupEngine or SplitEngine takes chunk by chunk, with all that outlives registers in
/// shared memory; and pieces of their rows on the way there.
template <class Config, class Layout>
class WarpgroupTokens {
 protected:
  using Element = typename Layout::Element;
  using Format = typename Layout::Format;
  static constexpr int chunk = Layout::chunk;

  __device__ WarpgroupTokens(void* shared, int slice)
      : kept_(static_cast<volatile Kept*>(shared)), first_column_(slice * Layout::columns) {}

  // What follows from these is computed where it is used: across a chunk there are no registers for it.
  static __device__ int thread() { return static_cast<int>(computed_afresh(threadIdx.x)); }
  static __device__ int lane() { return thread() % 32; }

  static __device__ bool aligned(const TensorView<const Element>& view) {
    return rows_aligned(view.data, view.batch_stride, view.token_stride, view.head_stride);
  }

  static __device__ void store_numbers(SharedAddress to, const float (&numbers)[4]) {
    asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};"
                 :
                 : "r"(to), "f"(numbers[0]), "f"(numbers[1]), "f"(numbers[2]), "f"(numbers[3])
                 : "memory");
  }

  /// Neighbouring elements on their way to shared memory, as they are stored.
  template <int count>
  struct Piece {
    static constexpr int per_word = 4 / static_cast<int>(sizeof(Element));
    Vector<std::uint32_t, count / per_word> words;

    /// Loads the first `wanted` of them (any number, also a negative one); others become 0.
    __device__ void load(const Element* from, int wanted, bool is_aligned) {
      words = {};
      if (wanted >= count && is_aligned) {
        words = load_vector<count / per_word>(reinterpret_cast<const std::uint32_t*>(from));
      } else if (wanted > 0) {
#pragma unroll
        for (int i = 0; i < count; ++i) {
          if (i < wanted) {
            words[i / per_word] |= bits(from[i]) << (i % per_word * 16);
          }
        }
      }
    }
    [[nodiscard]] __device__ float number(int i) const {
      const std::uint32_t word = words[i / per_word];
      return __uint_as_float(per_word == 1 ? word : (i % 2 == 0 ? word << 16 : word & 0xffff0000U));
    }
    static __device__ std::uint32_t bits(Element element) {
      if constexpr (per_word == 1) {
        return __float_as_uint(element);
      } else {
        return element.bits;
      }
    }
  };

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
  static_assert(sizeof(Kept) <= Layout::kept_bytes);

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

  static __device__ void prefetch(const void* address) {
    asm volatile("prefetch.global.L2 [%0];" : : "l"(address));
  }

  /// Normalises and stores the outputs of a warp's tokens.
  __device__ void store(const PrefillArgs<Config>& args, const float (&sums)[Layout::width / 2],
                        const float (&denominators)[2], std::int64_t first, int tokens, std::int64_t head) const {
    const int lane = WarpgroupTokens::lane();
    const auto& output = args.output;
    const bool pairs_aligned = reinterpret_cast<std::uintptr_t>(output.data) % (2 * sizeof(Element)) == 0 &&
                               (output.batch_stride | output.token_stride | output.head_stride) % 2 == 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = lane / 4 + 8 * i;
      const float denominator = denominators[i];
      if (t >= tokens) {
        continue;
      }
      const float factor = Config::Normaliser::factor(denominator);
      if (has_denominators<Config> && first_column_ == 0 && lane % 4 == 0) {
        store_denominator(args.denominators, kept_->row, first + t, head, denominator);
      }
      Element* const row = output.row(kept_->row, first + t, head) + first_column_;
#pragma unroll
      for (int j = 0; j < Layout::columns / 8; ++j) {
        const int column = 8 * j + lane % 4 * 2;
        const int room = Format::columns % Layout::columns == 0 ? 2 : Format::columns - first_column_ - column;
        const Vector<Element, 2> pair{
            {convert<Element>(sums[4 * j + 2 * i] * factor), convert<Element>(sums[4 * j + 2 * i + 1] * factor)}};
        if (pairs_aligned && room >= 2) {
          store_vector(row + column, pair);
        } else {
          for (int e = 0; e < 2 && e < room; ++e) {
            row[column + e] = pair[e];
          }
        }
      }
    }
  }

  volatile Kept* kept_;
  int first_column_;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
