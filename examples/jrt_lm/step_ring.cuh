// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "jrt_lm/step_schedule.hpp"

namespace jrt_lm {

inline constexpr int step_warps = 8;
inline constexpr int step_consumers = 32 * step_warps;
inline constexpr int step_preparers = 3;  ///< warps
/// Registers are given out by four warps: after those that multiply one that copies, three that prepare.
inline constexpr int step_threads = step_consumers + 128;
inline constexpr int consumer_registers = 208;  ///< with the next, no more than the kernel starts with
inline constexpr int helper_registers = 88;
inline constexpr int step_parts = 4;    ///< tiles of 8 rows of W whose sums are made together, at most
inline constexpr int step_barrier = 1;  ///< of the 8 warps
inline constexpr int max_ring_slots = 8;
/// With so many rows, loads of x take long.
inline constexpr int gated_rows = 3;

/// From a row of W in a slot to the next: rows lie 64 bytes off in the banks of shared memory, so that lanes of two rows do
/// not meet. `at_once`: pieces of a row, side by side.
[[nodiscard]] JRT_DETAIL_HD constexpr int row_stride(int at_once) {
  return at_once * piece_columns * 2 + 64;
}
inline constexpr int slot_bytes = slot_pieces * tile_outputs * row_stride(1);
/// What a warp takes of each piece, 32 columns at a time.
inline constexpr int warp_chunks = piece_columns / chunk_columns / step_warps;

/// Barriers in shared memory: two for each slot of the ring, two for each set of prepared numbers.
inline constexpr int prepared_slots = 2;
inline constexpr int step_barriers = 2 * max_ring_slots + 2 * prepared_slots;
inline constexpr int step_barrier_bytes = (8 * step_barriers + 15) / 16 * 16;

/// Copies to shared memory, past the caches' long-lived part: each weight is read once in a step.
__device__ inline void copy_row(std::uint32_t to, const void* from, int bytes, std::uint32_t barrier,
                                std::uint64_t policy) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
               :
               : "r"(to), "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
               : "memory");
}
__device__ inline uint4 load_shared(std::uint32_t from) {
  uint4 words;
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(from)
               : "memory");
  return words;
}

/// Slots of a ring in turn.
struct RingPlace {
  int slot = 0;
  std::uint32_t round = 0;
  __device__ void advance(int slots) {
    if (++slot == slots) {
      slot = 0;
      round ^= 1;
    }
  }
};

}  // namespace jrt_lm
