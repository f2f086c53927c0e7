// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/numeric.hpp"

/// Constants that trade one resource of a GPU for another: a table for each kernel, with the reason for each value. Kernels
/// take these constants from here alone. Measurements are from an H200 (sm_90a, CUDA 13.0) in November 2026, unless a
/// comment says otherwise; docs/performance.md and docs/hopper-kernel.md have commands and figures. Other GPUs use the same
/// values and were not measured.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Dynamic shared memory that a block may have: on every GPU from sm_80 on (sm_86 and sm_89 have the least), and on sm_90
/// (227 KiB, of which the window kernel leaves one).
inline constexpr std::size_t shared_bytes_everywhere = 99 * 1024;
inline constexpr std::size_t shared_bytes_sm90 = 226 * 1024;

// -- linear attention --------------------------------------------------------------------------------------------------

/// Prefill, sm_90a: segment_sums_sm90, segment_outputs_sm90.
struct HopperTuning {
  int stages = 4;                 // chunks of keys and values in flight or in use; 3 do as well, 2 do not
  int state_registers = 152;      // per thread of the state warps: the most with two blocks of 256 threads, no spills
  int output_registers = 104;     // per thread of the output warps: the rest
  int output_blocks = 2;          // blocks per multiprocessor, kernel with outputs: one waits while the other multiplies
  int sum_blocks = 3;             // likewise, kernel that only sums
  int min_segments = 3;           // a split in two reads everything twice to use units that are busy already
  int tokens_per_worker = 16;     // tokens of a sequence that make one more block worth its partial states
  int max_ordered = 128;          // sequences that are started in order of length: every block looks at all lengths
  int max_summed_chunks = 48;     // of a sequence and its encoder region whose blocks sum what is before their segments
  int min_ordered_tokens = 1024;  // of them on average; looking takes as long as a few chunks. (16 and 64 were measured.)
};
template <class Element>
inline constexpr HopperTuning hopper_tuning{};
/// The largest value of a state must be found before it is published, which takes registers.
template <>
inline constexpr HopperTuning hopper_tuning<Half>{.state_registers = 160, .output_registers = 96};

/// Prefill, sm_90a, of values of more than 64 columns: segment_outputs_sm90 and segment_sums_sm90 with TwinLayout.
struct TwinTuning {
  int max_columns = 112;       // more need more registers than there are
  int stages = 4;              // as above
  int state_registers = 136;   // per thread of the state warps: no spills with 112 columns
  int output_registers = 120;  // per thread of the output warps: the rest
  int sum_blocks = 2;          // per multiprocessor, kernel that only sums
  int long_ring = 2;           // left operands of state warps in use at a time
  int short_ring = 1;          // likewise, kernel that only sums, from this many columns on:
  int short_ring_columns = 104;
};
inline constexpr TwinTuning twin_tuning{};

/// Prefill, sm_90a, of wide states and of float as two terms: segment_sums_by_warpgroups, segment_outputs_by_warpgroups.
struct WarpgroupPrefillTuning {
  int groups = 3;        // of four warps; a state of 561 rows fits in their registers, 168 a thread
  int max_columns = 64;  // of v per block
};
template <int input_dim>
inline constexpr WarpgroupPrefillTuning warpgroup_prefill_tuning{};
/// 2145 rows fit in registers with few columns, and in shared memory with fewer tokens at a time.
template <>
inline constexpr WarpgroupPrefillTuning warpgroup_prefill_tuning<64>{.groups = 2, .max_columns = 16};

/// Prefill on the matrix units of any GPU: segment_sums, segment_outputs with MmaEngine.
struct MmaPrefillTuning {
  int max_columns = 112;            // of v per block: 7 warps, whose share of the state fits in registers
  int max_rows_of_one_half = 176;   // of the state; more are divided among two rows of warps
  int max_half_rows = 288;          // more spill
  int max_rows_of_two_blocks = 96;  // a half of so few rows needs 128 registers a thread, not 255
  int stages = 2;                   // chunks of keys and values in flight or in use
  int long_chunk = 64;              // tokens, where they fit in shared memory
  int short_chunk = 32;             // tokens, otherwise, and for two terms per value (half)
};
inline constexpr MmaPrefillTuning mma_prefill_tuning{};

/// Prefill on ordinary units: segment_sums, segment_outputs with SimtEngine. Not varied.
struct SimtPrefillTuning {
  int chunk = 32;        // tokens: a patch of 2 x 4 for each thread of 256 covers 32 x 64
  int max_columns = 64;  // of v per block
  int threads = 256;
  int float_blocks = 2;   // per multiprocessor
  int double_blocks = 1;  // twice the registers
};
inline constexpr SimtPrefillTuning simt_prefill_tuning{};

/// Backward, sm_90a: segment_gradients_sm90, encoder_gradients_sm90. Measured on an H100.
struct HopperBackwardTuning {
  int stages = 3;                // chunks in flight or in use
  int state_registers = 152;     // per thread: the most with two blocks of 256 threads
  int gradient_registers = 104;  // the rest; with 144 and 112 more is spilled
  int blocks = 2;                // per multiprocessor, all kernels
  int encoder_stages = 3;        // of each of two groups of warps
  int encoder_chunks = 32;       // of a block; the state is read once for them
};
inline constexpr HopperBackwardTuning hopper_backward_tuning{};

/// Backward on ordinary units: gradient_sums, segment_gradients. Not varied.
struct SimtGradientTuning {
  int long_chunk = 32;   // tokens, where all arrays fit in shared memory
  int short_chunk = 16;  // tokens, otherwise
  int threads = 256;
  int blocks = 1;  // per multiprocessor: most of its shared memory is one block's
};
inline constexpr SimtGradientTuning simt_gradient_tuning{};

/// state_scan. Eight loads in flight instead of one: B1 N2048 0.047 to 0.036 ms, B1 N32768 0.149 to 0.131 ms.
struct StateScanTuning {
  int threads = 256;
  int loads_in_flight = 8;
};
inline constexpr StateScanTuning state_scan_tuning{};

/// Decode: step_states. Memory-bound, so loads in flight matter: few registers per thread, many threads.
struct DecodeTuning {
  int float_values = 48;         // of the state in a thread's registers
  int min_threads = 128;         // of a block
  int max_threads = 512;         // likewise, for states that 128 threads cannot hold
  int threads_as_stored = 1024;  // per multiprocessor, where 16-bit values stay as they are stored
  int threads_as_summed = 768;   // likewise, where they are converted
};
inline constexpr DecodeTuning decode_tuning{};

// -- window attention --------------------------------------------------------------------------------------------------

/// Prefill, sm_90a: window_sm90. "Narrow" is up to 64 columns of keys and values, "wide" up to 128.
struct HopperWindowTuning {
  int narrow_workers = 3;  // warpgroups that take tiles of queries in turn
  int wide_workers = 2;
  int narrow_registers = 152;  // per thread of a worker: scores of a whole window at once
  int wide_registers = 224;
  int copier_registers = 56;
  int query_buffers = 2;          // per worker: the next tile is loaded while this one is multiplied
  int rotated_query_buffers = 3;  // where narrow tiles are rotated before: one is multiplied, one rotated, one loaded
  int max_tiles_at_a_time = 3;    // of keys whose scores a worker has at once; longer windows take
  int tiles_of_long_windows = 2;  // this many at a time
};
inline constexpr HopperWindowTuning hopper_window_tuning{};

/// Prefill on the matrix units of any GPU: window_tiles.
struct WindowTilesTuning {
  int warps = 4;
  int tile_keys = 64;
  int step_keys = 32;        // whose scores are in registers at a time
  int narrow_row_tiles = 2;  // of 16 queries, of a warp
  int wide_row_tiles = 1;
  int narrow_stages = 4;  // tiles of keys and values in flight or in use
  int wide_stages = 3;
  int narrow_blocks = 3;  // per multiprocessor
  int wide_blocks = 2;
  int min_tokens = 16;  // of a call; with fewer, one query at a time reads less
};
inline constexpr WindowTilesTuning window_tiles_tuning{};

/// Backward pass on the matrix units of any GPU: window_query_gradients, window_key_gradients. "Narrow" is up to 64 columns
/// of keys and values, "wide" up to 128.
struct WindowBackwardTuning {
  int warps = 4;  // each with 16 rows of the block's tile
  int stages = 2;
  int narrow_step = 32;  // columns whose weights are in registers at a time
  int wide_step = 16;
  int narrow_query_blocks = 4;  // per multiprocessor
  int narrow_key_blocks = 3;    // two gradients in registers instead of one
  int wide_blocks = 2;
};
inline constexpr WindowBackwardTuning window_backward_tuning{};

/// One query at a time: window_queries.
struct WindowQueryTuning {
  int threads = 128;
  int keys_in_flight = 4;         // of a group of lanes
  int narrow_keys_in_flight = 9;  // of 16 bits: those of a window of 128 at once, where d = 64
  int wide_keys_in_flight = 2;    // where a lane has several vectors of each
};
inline constexpr WindowQueryTuning window_query_tuning{};

/// Decode of one token per sequence: window_steps. A block loads the next ring while it reads this one.
struct WindowStepTuning {
  std::int64_t multiprocessor_bytes = 220 * 1024;  // of shared memory, for all blocks
  std::int64_t block_bytes = 160 * 1024;           // at most; larger rings take window_queries
  int max_blocks = 4;                              // per multiprocessor
  int many_blocks = 3;                             // from this many on, a block has
  int many_blocks_threads = 128;                   // this many threads, else
  int few_blocks_threads = 512;                    // this many
  int max_rounds = 9;                              // keys of a group of lanes, whose scores are in registers at a time
};
inline constexpr WindowStepTuning window_step_tuning{};

/// The same with one query per cache: window_stream, whose rows pass through registers.
struct WindowStreamTuning {
  int warps = 2;                  // that share a cache
  int rows = 4;                   // of a group of lanes at a time; twice as many are in registers
  int multiprocessor_warps = 16;  // of 128 registers a thread
  int min_caches = 2;             // per multiprocessor; fewer are read by window_steps, with more warps each
};
inline constexpr WindowStreamTuning window_stream_tuning{};

/// commit_window. Not varied.
inline constexpr int window_cache_threads = 128;
/// update_window_cache, whose blocks store up to L + 1 tokens each. Not varied but for 128.
inline constexpr int window_update_threads = 512;
/// Of both, read by a thread before it writes.
inline constexpr int window_numbers_in_flight = 8;

// -- convolution -------------------------------------------------------------------------------------------------------

struct ConvolutionTuning {
  int threads = 128;
  int blocks_narrow = 4;  // per multiprocessor, K <= 3: the most that leave registers for one access's channels
  int blocks_medium = 3;  // K <= 5
  int blocks_wide = 2;
  int step_threads = 64;                       // steps have few threads: small blocks reach more multiprocessors
  int prefetching_blocks = 256;                // of a step that asks the cache early; with many more it costs a quarter
  std::int64_t segment_tokens = 128;           // per thread: the K − 1 inputs before them cost little
  std::int64_t min_segment_tokens = 8;         // halved down to this while there are fewer threads than
  std::int64_t multiprocessor_threads = 2048;  // this per multiprocessor
};
inline constexpr ConvolutionTuning convolution_tuning{};

/// Backward: channel_gradients, add_segments. Not varied.
struct ConvolutionGradientTuning {
  int threads = 128;
  int blocks = 2;                             // per multiprocessor: the most that leave registers for their channels
  std::int64_t segment_tokens = 128;          // per thread: its sums, and the tokens read twice, cost little
  std::int64_t min_segment_tokens = 16;       // halved down to this while there are fewer threads than
  std::int64_t multiprocessor_threads = 512;  // this per multiprocessor
  int sum_threads = 256;                      // of a block that adds segments
  int sums_in_flight = 8;                     // loads of a thread that adds segments
};
inline constexpr ConvolutionGradientTuning convolution_gradient_tuning{};

// -- states ------------------------------------------------------------------------------------------------------------

/// Operations on whole states. Not varied.
inline constexpr int state_threads = 256;

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
