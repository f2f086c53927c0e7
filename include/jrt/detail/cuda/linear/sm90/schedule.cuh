// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/instructions.cuh"
#include "jrt/detail/cuda/linear/sm90/layout.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/segment.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/sequences.hpp"

/// The order in which a block processes its tokens, and the copies that load them.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Tensor maps of one call.
struct HopperMaps {
  CUtensorMap query, key, value, key_encoder, value_encoder, output;
};

/// Values in blocks of columns, for TwinLayout.
struct TwinMaps : HopperMaps {
  CUtensorMap value_blocks[2], value_encoder_blocks[2];
};

/// A run of neighbouring tokens in one tensor, in chunks.
struct TokenRun {
  int first = 0;  // in the tensor
  int row = 0;    // of the batch
  int tokens = 0;
  int zero_keys = 0;  // leading tokens whose key is treated as zero

  TokenRun() = default;
  template <class Element>
  __device__ TokenRun(const KeySource<Element>& source, const TokenRange& range)
      : first(static_cast<int>(source.first + range.begin)),
        row(static_cast<int>(source.row)),
        tokens(static_cast<int>(range.size())),
        zero_keys(static_cast<int>(clamped(source.zero_keys - range.begin, 0, range.size()))) {}

  /// The same, with warp-uniform values.
  [[nodiscard]] __device__ TokenRun warp_uniform() const {
    TokenRun run;
    run.first = cuda::warp_uniform(first);
    run.row = cuda::warp_uniform(row);
    run.tokens = cuda::warp_uniform(tokens);
    run.zero_keys = cuda::warp_uniform(zero_keys);
    return run;
  }
};

/// Which sequence is the `rank`-th to be started, of `count`: longer before shorter, so that the last blocks are short
/// ones. Called by all threads of the block; each ranks a sequence among all others.
template <class Layout, bool reads_encoder>
__device__ std::int64_t ordered_sequence(const Sequences& sequences, int count, int rank) {
  const auto work = [&](int b) {  // in 32 bits: it is but an order
    const int tokens =
        sequences.seq_lens != nullptr ? sequences.seq_lens[b] : sequences.cu_seqlens[b + 1] - sequences.cu_seqlens[b];
    int encoder = 0;
    if constexpr (reads_encoder) {
      if (sequences.prefix_lens != nullptr) {
        encoder = sequences.prefix_lens[b];
      } else if (sequences.cu_encoder_seqlens != nullptr) {
        encoder = sequences.cu_encoder_seqlens[b + 1] - sequences.cu_encoder_seqlens[b];
      }
    }
    return tokens / 2 + encoder / 5;  // an encoder token is only summed
  };
  for (int b = static_cast<int>(threadIdx.x); b < count; b += static_cast<int>(blockDim.x)) {
    const int own = work(b);
    int earlier = 0;
#pragma unroll 4
    for (int other = 0; other < count; ++other) {
      const int others = work(other);
      earlier += others > own || (others == own && other < b) ? 1 : 0;
    }
    if (earlier == rank) {
      store_pair(SharedNumbers::at(Layout::ordered_sequence), static_cast<Pair>(b));
    }
  }
  __syncthreads();
  return load_pair(Layout::ordered_sequence);
}

/// Whether several query heads share a key head.
enum class QueryHeads { one, grouped };

/// Keys of the encoder region, or of the block's own tokens.
enum class KeyRegion { encoder, own };

/// A block's chunks: those of the encoder's run, then those of tokens before its own that it sums itself, then those of its
/// own tokens.
template <class Config, class LayoutT = HopperLayout<Config>>
struct HopperSchedule {
  using Layout = LayoutT;
  using Maps = std::conditional_t<Layout::groups == 2, TwinMaps, HopperMaps>;

  TokenRun encoder;
  TokenRun before;  // ends where `own` begins
  TokenRun own;
  int key_head = 0;
  int column = 0;  // first of the slice

  __device__ HopperSchedule(const TokenRun& encoder_run, const TokenRun& before_run, const TokenRun& own_run,
                            std::int64_t head, int slice)
      : encoder(encoder_run.warp_uniform()),
        before(before_run.warp_uniform()),
        own(own_run.warp_uniform()),
        key_head(cuda::warp_uniform(static_cast<int>(head))),
        column(cuda::warp_uniform(slice * Layout::columns)) {}

  static __device__ int chunks_of(const TokenRun& run) { return (run.tokens + Layout::chunk - 1) / Layout::chunk; }

  /// Chunks before those of the block's own tokens.
  [[nodiscard]] __device__ int earlier_chunks() const { return chunks_of(encoder) + chunks_of(before); }

  /// Issues the copies of keys and values of chunk n of a run, the block's chunk i; n is negative for the tokens before the
  /// block's own. Called by a whole warp, like the next two.
  template <KeyRegion region>
  __device__ void load_keys(const Maps& maps, int n, int i) const {
    constexpr bool from_encoder = region == KeyRegion::encoder;
    const TokenRun& run = from_encoder ? encoder : own;
    const int stage = i % Layout::stages;
    const SharedAddress barrier = Layout::keys_full + 8 * stage;
    const int token = run.first + n * Layout::chunk;
    barrier_expect(barrier, Layout::input_bytes + Layout::value_bytes);
    load_tile(Layout::keys + stage * Layout::input_tile, from_encoder ? &maps.key_encoder : &maps.key,
              {0, token, key_head, run.row}, barrier);
    const SharedAddress values = Layout::values + stage * Layout::value_tile;
    if constexpr (Layout::groups == 2) {
      const CUtensorMap* const blocks = from_encoder ? maps.value_encoder_blocks : maps.value_blocks;
      load_tile(values, &blocks[0], {0, token, key_head, run.row}, barrier);
      load_tile(values + Layout::value_block, &blocks[1], {Layout::block_columns, token, key_head, run.row}, barrier);
    } else {
      load_tile(values, from_encoder ? &maps.value_encoder : &maps.value, {column, token, key_head, run.row}, barrier);
    }
  }
  /// The same for the block's chunk i.
  __device__ void load_keys(const Maps& maps, int i) const {
    if (i < chunks_of(encoder)) {
      load_keys<KeyRegion::encoder>(maps, i, i);
    } else {
      load_keys<KeyRegion::own>(maps, i - earlier_chunks(), i);
    }
  }

  /// Issues the copy of the queries of step s: chunk s / group of the block's tokens, query head s % group of the key head.
  __device__ void load_queries(const Maps& maps, int s, int group) const {
    const int stage = s % Layout::stages;
    const int n = group == 1 ? s : s / group;
    const SharedAddress barrier = Layout::query_full + 8 * stage;
    barrier_expect(barrier, Layout::input_bytes);
    load_tile(Layout::queries + stage * Layout::input_tile, &maps.query,
              {0, own.first + n * Layout::chunk, key_head * group + (s - n * group), own.row}, barrier);
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
