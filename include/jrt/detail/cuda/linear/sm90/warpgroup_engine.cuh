// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/mma.cuh"
#include "jrt/detail/cuda/core/sm90/product.cuh"
#include "jrt/detail/cuda/linear/sm90/warpgroup_chunk.cuh"
#include "jrt/detail/cuda/linear/sm90/warpgroup_features.cuh"
#include "jrt/detail/cuda/linear/sm90/warpgroup_products.cuh"
#include "jrt/detail/shared/linear/denominators.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/mixer/linear_attention.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Prefill of one head's tokens by one block on the matrix unit of sm_90a, for states that one group of warps cannot hold.
/// Groups share work in two ways, and so never wait for one another within a chunk:
///
///     outputs   a group has 64 tokens of the chunk, and all features:    y = φ(q)·S + P·v
///     update    a group has its tiles of the state, and all tokens:      S += φ(k)ᵀ·v
///
/// Features are formed in registers, where they are left operands. The state is kept in registers in float; at the start
/// of a chunk it is published in shared memory, rounded.
template <AttentionConfig Config>
class WarpgroupEngine : private WarpgroupProducts<Config> {
  using Chunk = WarpgroupChunk<Config>;
  using Products = WarpgroupProducts<Config>;

 public:
  using Layout = WarpgroupLayout<Config>;
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

  __device__ WarpgroupEngine(const PrefillArgs<Config>& args, void* shared, void* /*scratch*/, int slice)
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
    for (int m = 0; m < Layout::group_tiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int r = 16 * step_of(m) + lane / 4 + 8 * h;
#pragma unroll
        for (int j = 0; j < Layout::width / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int column = 8 * j + lane % 4 * 2 + e;
            const int c = first_column_ + column;
            float& number = state_[m][4 * j + 2 * h + e];
            if (r < Format::rows && column < Layout::columns && c < Format::columns) {
              function(std::int64_t{r} * Format::columns + c, number, true);
            } else {
              number = 0;
            }
          }
        }
        if (r < Format::rows && lane % 4 == 0) {
          function(Format::normaliser_offset + r, normaliser_[m][h], first_column_ == 0);
        } else {
          normaliser_[m][h] = 0;
        }
      }
    }
  }

  /// S += Σ φ(k)vᵀ, z += Σ φ(k) over a range of tokens.
  __device__ void accumulate(const KeySource<Element>& source, const TokenRange& range) {
    __syncthreads();
    keep(source, range, 0);
    __syncthreads();
    Chunk::store_factors();
    for (std::int64_t begin = 0; tokens_from(begin) > 0; begin += chunk) {
      read_chunk(begin);
      async_proxy_fence();
      __syncthreads();
      prefetch(begin + chunk);
      update(tokens_from(begin));
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
      Chunk::store_factors();
    }
    for (std::int64_t begin = 0; tokens_from(begin) > 0; begin += chunk) {
      if (!full || begin == 0) {
        publish();
      }
      if constexpr (!full) {
        read_chunk(begin);
      }
      async_proxy_fence();
      __syncthreads();
      if constexpr (!full) {
        prefetch(begin + chunk);
      }
      Chunk::move_aside(state_[Layout::group_tiles - 1]);
      prefetch_queries(begin + chunk, group);
      if (64 * group_ < tokens_from(begin)) {
        for (int g = 0; g < group; ++g) {
          write_outputs(begin, g);
        }
      }
      Chunk::take_back(state_[Layout::group_tiles - 1]);
      if constexpr (!full) {
        update(tokens_from(begin));
      }
      __syncthreads();
    }
  }

 private:
  static constexpr bool full = Config::Mask::reads_future;
  static constexpr int fragments = Products::fragments;

  using Chunk::first_column_;
  using Chunk::keep;
  using Chunk::kept_;
  using Chunk::prefetch;
  using Chunk::read_chunk;
  using Chunk::states;
  using Chunk::store_numbers;
  using Chunk::tokens_from;
  using Chunk::values;
  using Products::multiply;
  using Products::over_quad;

  /// The step of 16 rows of the state that this warp has in its group's m-th tile.
  [[nodiscard]] __device__ int step_of(int m) const {
    return 4 * (m * Layout::groups + group_) + warp_;
  }

  /// Writes this group's tiles of S, rounded, and of z. Within 8 rows the order is that of QueryFragments.
  __device__ void publish() const {
    const int lane = Chunk::lane();
    const int row = lane % 8;
    const auto place = static_cast<unsigned>(lane / 8 % 2 * Layout::row_block + lane / 16 * 128 +
                                             (row < 4 ? 2 * row : 2 * (row - 4) + 1) * 16);
#pragma unroll
    for (int m = 0; m < Layout::group_tiles; ++m) {
      if (step_of(m) < Layout::feature_steps) {
        // Where the pair is twice the same input, the query's feature is half of the product that QueryFragments forms.
        const int step = step_of(m);
        const float factor = step / Layout::input_steps == 1 ? 0.5F : 1.0F;
        if (lane % 4 == 0) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int r = lane / 4;
            store_pair(SharedNumbers::at(Layout::normaliser +
                                         static_cast<unsigned>(64 * step_of(m) + r % 4 * 16 + r / 4 * 4 + 8 * h)),
                       __float_as_uint(normaliser_[m][h] * factor));
          }
        }
#pragma unroll
        for (int j = 0; j < Layout::width / 8; j += 2) {
          Pair pairs[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int at = 4 * j + 2 * i;
            pairs[i] = at < Layout::width / 2
                           ? as_pair(__floats2bfloat162_rn(state_[m][at] * factor, state_[m][at + 1] * factor))
                           : 0;
          }
          const SharedAddress to = states(step) + place + j * 128;
          if (j + 1 < Layout::width / 8) {
            store_blocks(to, pairs[0], pairs[1], pairs[2], pairs[3]);
          } else {
            store_blocks(to, pairs[0], pairs[1]);
          }
        }
      }
    }
  }

  /// Asks the second-level cache for a chunk's queries, which are read only when they are needed.
  __device__ void prefetch_queries(std::int64_t begin, int group) const {
    const int t = Chunk::thread();
    if (t < tokens_from(begin)) {
      for (int g = 0; g < group; ++g) {
        prefetch(args_.query.row(kept_->row, kept_->token + begin + t, kept_->head + g));
      }
    }
  }

  /// S += φ(k)ᵀ·v, z += Σ φ(k) over a chunk, for this group's tiles.
  __device__ void update(int tokens) {
#pragma unroll
    for (int m = 0; m < Layout::group_tiles; ++m) {
      if (m * Layout::groups + group_ >= Layout::tiles) {
        break;
      }
      const KeyFragments<Layout> keys(step_of(m), Chunk::lane());
      float features[2] = {0, 0};
#pragma unroll 1
      for (int first = 0; first < tokens; first += 64) {
        LeftFragment left[fragments];
        add_tokens(state_[m], left, keys, first, features);
        wgmma_wait<0>();
        fence_accumulators(state_[m]);
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        // Positions past the last token have the constant feature, too.
        const float sum = over_quad(features[h]);
        normaliser_[m][h] += keys.is_constant(h) ? static_cast<float>(tokens) : sum;
      }
    }
  }
  static __device__ void add_tokens(float (&sums)[Layout::width / 2], LeftFragment (&left)[fragments],
                                    const KeyFragments<Layout>& keys, int first, float (&features)[2]) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      wgmma_wait<fragments - 1>();
      const int token = first + 16 * k;
      keys.features(left[k % fragments], Layout::keys + static_cast<unsigned>(token * Layout::row_bytes), features);
      multiply(sums, left[k % fragments], values(token));
    }
  }
  /// Outputs of this warp's 16 tokens of a chunk, for query head g of the group.
  __device__ void write_outputs(std::int64_t begin, int g) {
    const int first = 64 * group_ + 16 * warp_;
    const auto rows = Layout::queries + static_cast<unsigned>(first * Layout::row_bytes);
    const std::int64_t token = kept_->token + begin + first;
    const int tokens = tokens_from(begin) - first;  // that are there; may be negative
    __syncwarp();
    Chunk::read_queries(rows, args_.query.row(kept_->row, token, kept_->head + g), args_.query.token_stride, tokens,
                        Chunk::aligned(args_.query));
    __syncwarp();
    float sums[Layout::width / 2] = {};
    float denominators[2] = {0, 0};
    LeftFragment left[fragments];
    if constexpr (!full) {
      Products::add_scores(sums, denominators, left, rows, group_, warp_);
    }
    Products::add_state(sums, denominators, left, rows);
    wgmma_wait<0>();
    fence_accumulators(sums);
    denominators[0] = over_quad(denominators[0]);
    denominators[1] = over_quad(denominators[1]);
    Chunk::store(args_, sums, denominators, kept_->token + begin + first, tokens_from(begin) - first, kept_->head + g);
  }

  const PrefillArgs<Config>& args_;
  int group_;
  int warp_;  // of the group
  float state_[Layout::group_tiles][Layout::width / 2];
  float normaliser_[Layout::group_tiles][2];  // in lanes 4g
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
