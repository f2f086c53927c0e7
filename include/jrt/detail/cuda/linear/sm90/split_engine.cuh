// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/mma.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/linear/sm90/split_chunk.cuh"
#include "jrt/detail/cuda/linear/sm90/split_features.cuh"
#include "jrt/detail/cuda/linear/sm90/split_products.cuh"
#include "jrt/detail/cuda/linear/sm90/warpgroup_features.cuh"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/mixer/linear_attention.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Prefill of one head's tokens by one block on the matrix unit of sm_90a, where float numbers are multiplied as the sum of
/// two terms (SplitProducts) and d = 16. Groups share work as in WarpgroupEngine:
///
///     outputs   a group has 64 tokens of the chunk, and all features:    [y | den] = φ(q)·[S | z] + P·[v | 1]
///     update    a group has its tile of the state, and all tokens:       [S | z] += φ(k)ᵀ·[v | 1]
///
/// Features are formed in registers, where they are left operands: keys' from inputs that are terms already, queries' in
/// float. The state is kept in registers in float; at the start of a chunk it is published in shared memory, as terms.
template <AttentionConfig Config>
class SplitEngine : private SplitProductsOf<Config> {
  using Chunk = SplitChunk<Config>;
  using Products = SplitProductsOf<Config>;

 public:
  using Layout = SplitLayout<Config>;
  using Map = typename Layout::Map;
  using Element = typename Layout::Element;
  using Format = typename Layout::Format;

  static constexpr int threads = Layout::threads;
  static constexpr int blocks_per_multiprocessor = 1;
  static constexpr int chunk = Layout::chunk;
  static constexpr int slices = Layout::slices;
  static constexpr bool slices_need_partials = slices > 1;
  static constexpr std::size_t shared_bytes = Layout::shared_bytes;
  static constexpr std::int64_t scratch_bytes = 0;

  __device__ SplitEngine(const PrefillArgs<Config>& args, void* shared, void* /*scratch*/, int slice)
      : Products(shared, slice), args_(args) {
    const int warp = warp_uniform(static_cast<int>(threadIdx.x) / 32);
    group_ = warp / 4;
    warp_ = warp % 4;
  }

  /// As SimtEngine::for_state.
  template <class Function>
  __device__ void for_state(const Function& function) {
    const int lane = Chunk::lane();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = format_row(lane / 4 + 8 * h);
#pragma unroll
      for (int j = 0; j < Layout::width / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& number = state_[4 * j + 2 * h + e];
          const int column = 8 * j + lane % 4 * 2 + e;
          const int c = first_column_ + column;
          if (r >= 0 && j == Layout::columns / 8) {
            function(Format::normaliser_offset + r, number, first_column_ == 0 && e == 0 && lane % 4 == 0);
          } else if (r >= 0 && c < Format::columns) {
            function(std::int64_t{r} * Format::columns + c, number, true);
          } else {
            number = 0;
          }
        }
      }
    }
  }

  /// [S | z] += Σ φ(k)[v | 1]ᵀ over a range of tokens.
  __device__ void accumulate(const KeySource<Element>& source, const TokenRange& range) {
    __syncthreads();
    keep(source, range, 0);
    __syncthreads();
    Chunk::store_constants();
    copy_values(0);
    await_copies();
    __syncthreads();
    for (std::int64_t begin = 0; tokens_from(begin) > 0; begin += chunk) {
      KeyPieces keys;
      load_keys(keys, begin);
      store_values(begin);
      store_keys(keys);
      async_proxy_fence();
      __syncthreads();
      prefetch_keys(begin + chunk);
      copy_values(begin + chunk);
      update<false>(tokens_from(begin));
      await_copies();
      __syncthreads();
    }
  }

  /// As SimtEngine::outputs.
  __device__ void outputs(const KeySource<Element>& source, const TokenRange& range) {
    const auto group = static_cast<int>(args_.query.heads / args_.key.heads);
    __syncthreads();
    keep(source, range, group);
    __syncthreads();
    if constexpr (!full) {
      Chunk::store_constants();
    }
    if constexpr (!full) {
      copy_values(0);
      await_copies();
      __syncthreads();
    }
    for (std::int64_t begin = 0; tokens_from(begin) > 0; begin += chunk) {
      KeyPieces keys;
      QueryPieces queries;
      load_queries(queries, begin, 0);
      if constexpr (!full) {
        load_keys(keys, begin);
      }
      if (!full || begin == 0) {
        publish();
      }
      if constexpr (!full) {
        store_values(begin);
        store_keys(keys);
      }
      queries.store(query_rows());
      async_proxy_fence();
      __syncthreads();
      prefetch_queries(begin + chunk, group);
      if constexpr (!full) {
        prefetch_keys(begin + chunk);
        copy_values(begin + chunk);
      }
      for (int g = 0; g < group; ++g) {
        if (g > 0) {
          load_queries(queries, begin, g);
          __syncwarp();
          queries.store(query_rows());
          __syncwarp();
        }
        if (64 * group_ < tokens_from(begin)) {
          write_outputs(begin, g);
        }
      }
      if constexpr (!full) {
        update<true>(tokens_from(begin));
        await_copies();
      }
      __syncthreads();
    }
  }

 private:
  static constexpr bool full = Config::Mask::reads_future;
  static constexpr int fragments = Products::fragments;

  using Keys = SplitKeyFragments<Layout>;
  using KeyPieces = typename Chunk::KeyPieces;
  using QueryPieces = typename Chunk::QueryPieces;

  using Chunk::await_copies;
  using Chunk::copy_values;
  using Chunk::first_column_;
  using Chunk::keep;
  using Chunk::kept_;
  using Chunk::load_keys;
  using Chunk::prefetch_keys;
  using Chunk::store_keys;
  using Chunk::store_values;
  using Chunk::tokens_from;
  using Products::multiply;

  /// The step of 16 rows of the state that this warp has.
  [[nodiscard]] __device__ int step() const {
    return 4 * group_ + warp_;
  }

  /// The row of the state's format that row i of this warp's step has; negative if it has none.
  [[nodiscard]] __device__ int format_row(int i) const {
    const int step = SplitEngine::step();
    if (step < Layout::half_step || (step == Layout::half_step && i < 8)) {
      return Layout::input_dim * (step + 1) + i;
    }
    if (step == Layout::half_step) {
      return i == 8 ? Map::feature_dim - 1 : -1;
    }
    return step == Layout::linear_step ? i : -1;
  }

  /// Writes this warp's rows of [S | z] as terms, in the order of SplitQueryFragments.
  __device__ void publish() const {
    if (step() > Layout::linear_step) {
      return;
    }
    // Where the pair is twice the same input, the query's feature is half of the product of its inputs.
    constexpr auto linear = static_cast<float>(Map::linear_scale) / Layout::query_scale;
    const float factor = step() == 0 ? 0.5F : step() == Layout::linear_step ? linear : 1.0F;
    const int lane = Chunk::lane();
    const int row = lane % 8;
    const auto place =
        static_cast<unsigned>(row / 4 * Layout::state_block + lane / 16 * 128 + (row % 4 * 2 + lane / 8 % 2) * 16);
#pragma unroll
    for (int j = 0; j < Layout::width / 8; j += 2) {
      SplitPair pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * j + 2 * i;
        pairs[i] = at < Layout::width / 2 ? split(state_[at] * factor, state_[at + 1] * factor) : SplitPair{};
      }
      const SharedAddress to = Layout::states + static_cast<unsigned>(step() * 2 * Layout::state_block) + place + j * 128;
      const SharedAddress small_to = to + Layout::state_term;
      if (j + 1 < Layout::width / 8) {
        store_blocks(to, pairs[0].large, pairs[1].large, pairs[2].large, pairs[3].large);
        store_blocks(small_to, pairs[0].small, pairs[1].small, pairs[2].small, pairs[3].small);
      } else {
        store_blocks(to, pairs[0].large, pairs[1].large);
        store_blocks(small_to, pairs[0].small, pairs[1].small);
      }
    }
  }

  /// Asks the second-level cache for a chunk's queries, which are read only when they are needed.
  __device__ void prefetch_queries(std::int64_t begin, int group) const {
    const int t = Chunk::thread();
    if (t < tokens_from(begin)) {
      for (int g = 0; g < group; ++g) {
        Chunk::prefetch(args_.query.row(kept_->row, kept_->token + begin + t, kept_->head + g));
      }
    }
  }

  /// This warp's 16 tokens of a chunk.
  [[nodiscard]] __device__ int first_token() const {
    return 64 * group_ + 16 * warp_;
  }
  [[nodiscard]] __device__ SharedAddress query_rows() const {
    return Layout::queries + static_cast<unsigned>(first_token() * Layout::query_row);
  }
  /// Their queries of head g of the group; of those that are not there, zeros.
  __device__ void load_queries(QueryPieces& queries, std::int64_t begin, int g) const {
    queries.load(args_.query.row(kept_->row, kept_->token + begin + first_token(), kept_->head + g),
                 args_.query.token_stride, tokens_from(begin) - first_token(), Chunk::aligned(args_.query));
  }

  /// [S | z] += φ(k)ᵀ·[v | 1] over a chunk, for this group's tile. `with_outputs`: this chunk has outputs, which keep the
  /// last group busy for longest.
  template <bool with_outputs>
  __device__ void update(int tokens) {
    // The matrix unit truncates where an addition rounds, so products of a chunk are summed apart.
    float sums[Layout::width / 2] = {};
    const bool shares = with_outputs && group_ == Layout::groups - 1;
    add_tokens(sums, step(), shares ? 64 : 0, tokens);
#pragma unroll
    for (int i = 0; i < Layout::width / 2; ++i) {
      state_[i] += sums[i];
    }
    if constexpr (with_outputs) {
      if (group_ == 0) {
        take_over();
      } else if (group_ == Layout::groups - 1) {
        add_taken_over();
      }
    }
  }
  /// A group has the more keys to look back on the later its tokens are: of steps of 16 features or tokens, the first has 4
  /// for weights, the others 8 and 12; all have 10 for the state and 12 for the update. So the first forms the sums over
  /// the first 64 tokens for the last one's tile.
  __device__ void take_over() const {
    float sums[Layout::width / 2] = {};
    add_tokens(sums, 4 * (Layout::groups - 1) + warp_, 0, 64);
#pragma unroll
    for (int i = 0; i < Layout::width / 2; i += 4) {
      asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};"
                   :
                   : "r"(taken_over(i / 4)), "f"(sums[i]), "f"(sums[i + 1]), "f"(sums[i + 2]), "f"(sums[i + 3])
                   : "memory");
    }
    arrive_at_named_barrier(1, 256);
  }
  __device__ void add_taken_over() {
    named_barrier(1, 256);
    float numbers[4];
#pragma unroll
    for (int i = 0; i < Layout::width / 2; i += 4) {
      load_numbers(numbers, taken_over(i / 4));
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        state_[i + e] += numbers[e];
      }
    }
  }
  /// Place of this thread's n-th four numbers, which the thread of the same number in the other group finds there.
  static __device__ SharedAddress taken_over(int n) {
    return Layout::taken_over + static_cast<unsigned>((128 * n + Chunk::thread() % 128) * 16);
  }
  /// sums += φ(k)ᵀ·[v | 1] for one step of a warp's features, over tokens first … end − 1 and what completes the last 64.
  static __device__ void add_tokens(float (&sums)[Layout::width / 2], int step, int first, int end) {
    Keys keys(step, first, Chunk::lane());
    MatrixDescriptor values = Chunk::values().after(first / 8 * Layout::row_block);
    SplitLeft left[fragments];
    keys.load(0);
#pragma unroll 1
    for (; first < end; first += 64) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        wgmma_wait<fragments - 1>();
        keys.features(left[k % fragments]);
        multiply(sums, left[k % fragments], values.after(2 * k * Layout::row_block), Layout::value_term);
        keys.load(k + 1);  // while the products run; those behind the last tokens are not used
      }
      keys.advance();
      values = values.after(8 * Layout::row_block);
    }
    wgmma_wait<0>();
    fence_accumulators(sums);
  }
  /// Outputs of this warp's tokens of a chunk, for query head g of the group.
  __device__ void write_outputs(std::int64_t begin, int g) {
    float sums[Layout::width / 2] = {};
    SplitLeft left[fragments];
    typename Products::Queries queries(query_rows(), Chunk::lane());
    if constexpr (!full) {
      Products::add_scores(sums, left, queries, group_, warp_);
    }
    Products::add_state(sums, left, queries);
    wgmma_wait<0>();
    fence_accumulators(sums);
    constexpr int ones = Layout::columns / 2;
    Chunk::store(args_, sums, {sums[ones], sums[ones + 2]}, kept_->token + begin + first_token(),
                 tokens_from(begin) - first_token(), kept_->head + g);
  }

  const PrefillArgs<Config>& args_;
  int group_;
  int warp_;  // of the group
  float state_[Layout::width / 2];
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
