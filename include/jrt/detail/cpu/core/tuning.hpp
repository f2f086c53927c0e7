// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/simd.hpp"

/// The CPU backend's tuning constants, with the reason for each. What was measured was so on the machine of
/// docs/performance.md (AVX-512, November 2026), which also lists what was tried; other instruction sets use the same
/// values and were not measured.
namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// Whether registers are many: 32 with AVX-512 and on ARM, 16 elsewhere.
inline constexpr bool many_registers = vector_registers >= 32;

/// A tile of a product, in rows and packets: 24 sums, 4 packets of the right operand and one broadcast fill 32 registers;
/// 12, 2 and one fit in 16. 4x4, 5x4, 7x4, 8x2 and 12x2 are slower or equal.
inline constexpr int tile_rows = 6;
inline constexpr int tile_packets = many_registers ? 4 : 2;

/// A block of the state in a decode step, in rows and packets: with a row of values or outputs beside it, it fills three
/// quarters of the registers.
inline constexpr int decode_rows = 4;
inline constexpr int decode_packets = many_registers ? 4 : 2;

/// Tokens of a chunk, a multiple of the tile's rows. Longer chunks mean fewer passes over the state but more pairs within
/// the chunk. Flat between 36 and 60; 48 rounds the state least often.
inline constexpr int chunk_tokens = 48;
static_assert(chunk_tokens % tile_rows == 0);

/// Key/value heads that one task works on in turn. In [B,T,H,d] views the rows of neighbouring heads are neighbours in
/// memory, while two tokens are often a page apart: heads worked on together share pages and cache lines, 10 to 15 %
/// faster. Their states must fit in the cache.
inline constexpr std::int64_t max_heads_together = 4;

/// Workers for which a backward pass splits sequences, whatever their number is: gradients must not depend on it. A batch
/// with more than half as many heads is not split.
inline constexpr std::int64_t backward_workers = 16;

/// Keys in a panel of window attention, and the least tokens of a segment, before which a window of keys is read twice.
/// Not varied.
inline constexpr std::int64_t panel_keys = 64;
inline constexpr std::int64_t min_window_segment_tokens = 1024;

/// Inputs of a block of channels of the convolution: a page, so that weights and the last K inputs stay in the first-level
/// cache. Not varied.
inline constexpr std::int64_t convolution_block_bytes = 4096;

/// Half of that for gradients, since there are sums and gradients beside the weights and inputs; and rows of a segment,
/// whatever the threads: then sums over tokens do not depend on them. The K−1 tokens after a segment are computed twice.
/// Not varied.
inline constexpr std::int64_t convolution_gradient_block_bytes = convolution_block_bytes / 2;
inline constexpr std::int64_t convolution_gradient_segment_tokens = 256;

/// Steps of a tile's product, of tile_rows · tile_packets multiply-adds, after which a line is prefetched: often enough for
/// all rows of the next chunk.
inline constexpr int steps_per_prefetch = 4;

/// Bytes that a prefetch brings.
inline constexpr std::int64_t cache_line_bytes = 64;

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
