// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/mma.cuh"

/// Instructions of sm_90a that neither CUDA C++ nor libcu++ offers with addresses of 32 bits: in a kernel with no register
/// to spare, shared memory is addressed by compile-time constants. Names and semantics follow the PTX ISA.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Address in shared memory.
using SharedAddress = std::uint32_t;

__device__ inline SharedAddress shared_address(const void* pointer) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(pointer));
}

// -- barriers ------------------------------------------------------------

__device__ inline void barrier_init(SharedAddress barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(barrier), "r"(arrivals));
}
/// Makes initialised barriers visible to the copy engine.
__device__ inline void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
}
/// One arrival for the warp, after all that its lanes have done before.
__device__ inline void barrier_arrive(SharedAddress barrier) {
  __syncwarp();
  asm volatile(
      "{\n"
      ".reg .pred one;\n"
      "elect.sync _|one, 0xffffffff;\n"
      "@one mbarrier.arrive.shared::cta.b64 _, [%0];\n"
      "}\n"
      :
      : "r"(barrier)
      : "memory");
}
/// One arrival for the warp, at a barrier whose phase also waits for copies of `bytes`.
__device__ inline void barrier_expect(SharedAddress barrier, int bytes) {
  asm volatile(
      "{\n"
      ".reg .pred one;\n"
      "elect.sync _|one, 0xffffffff;\n"
      "@one mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n"
      "}\n"
      :
      : "r"(barrier), "r"(bytes)
      : "memory");
}
/// Waits until the phase of this parity has completed; the barrier must not be two phases ahead.
__device__ inline void barrier_wait(SharedAddress barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1, 0x989680;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:\n"
      "}\n"
      :
      : "r"(barrier), "r"(parity)
      : "memory");
}
/// Synchronises `threads` threads of the block at named barrier `id`.
__device__ inline void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" : : "r"(id), "r"(threads) : "memory");
}
/// Arrives there without waiting.
__device__ inline void arrive_at_named_barrier(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" : : "r"(id), "r"(threads) : "memory");
}

// -- the copy engine (TMA) ------------------------------------------------------
//
// Called by whole warps, of which one elected lane, always the same, issues the copy: this way addresses stay in
// warp-uniform registers, where the instructions need them.

struct TileCoordinates {
  int column = 0;
  int token = 0;
  int head = 0;
  int row = 0;  // of the batch
};

__device__ inline void load_tile(SharedAddress to, const void* tensor_map, const TileCoordinates& at,
                                 SharedAddress barrier) {
  asm volatile(
      "{\n"
      ".reg .pred one;\n"
      "elect.sync _|one, 0xffffffff;\n"
      "@one cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3,%4,%5,%6}], "
      "[%2];\n"
      "}\n"
      :
      : "r"(to), "l"(tensor_map), "r"(barrier), "r"(at.column), "r"(at.token), "r"(at.head), "r"(at.row)
      : "memory");
}
__device__ inline void store_tile(const void* tensor_map, SharedAddress from, const TileCoordinates& at) {
  asm volatile(
      "{\n"
      ".reg .pred one;\n"
      "elect.sync _|one, 0xffffffff;\n"
      "@one cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2,%3,%4,%5}], [%1];\n"
      "@one cp.async.bulk.commit_group;\n"
      "}\n"
      :
      : "l"(tensor_map), "r"(from), "r"(at.column), "r"(at.token), "r"(at.head), "r"(at.row)
      : "memory");
}
/// Waits until the sources of this warp's stores may be overwritten.
__device__ inline void await_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" : : : "memory");
  __syncwarp();
}
/// Waits until this warp's stores are in memory.
__device__ inline void await_stores() {
  asm volatile("cp.async.bulk.wait_group 0;" : : : "memory");
}
/// Makes this thread's writes to shared memory visible to the matrix unit and the copy engine.
__device__ inline void async_proxy_fence() {
  asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
}

// -- registers ------------------------------------------------------------

template <int registers>
__device__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(registers));
}
template <int registers>
__device__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(registers));
}

// -- shared memory ------------------------------------------------------------

__device__ inline Pair load_pair(SharedAddress from) {
  Pair pair;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(pair) : "r"(from) : "memory");
  return pair;
}
__device__ inline void store_pointer(SharedAddress to, const void* pointer) {
  asm volatile("st.shared.b64 [%0], %1;" : : "r"(to), "l"(pointer) : "memory");
}
__device__ inline void* load_pointer(SharedAddress from) {
  void* pointer;
  asm volatile("ld.shared.b64 %0, [%1];" : "=l"(pointer) : "r"(from) : "memory");
  return pointer;
}
/// Stores four, or two, 8x8 blocks of 16-bit values from a warp's fragments; lane l has the address of row l % 8 of block l
/// / 8.
__device__ inline void store_blocks(SharedAddress row, Pair block0, Pair block1, Pair block2, Pair block3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
               :
               : "r"(row), "r"(block0), "r"(block1), "r"(block2), "r"(block3)
               : "memory");
}
__device__ inline void store_blocks(SharedAddress row, Pair block0, Pair block1) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1,%2};" : : "r"(row), "r"(block0), "r"(block1) : "memory");
}

// -- values -------------------------------------------------------------

__device__ inline float approximate_reciprocal(float number) {
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(number));
  return reciprocal;
}
/// The same value, hidden from the optimiser: expressions of it are computed where they are used, instead of being kept in
/// registers across a loop.
__device__ inline unsigned computed_afresh(unsigned number) {
  asm volatile("" : "+r"(number));
  return number;
}
/// Tells the compiler that a value is the same in all lanes.
__device__ inline int warp_uniform(int number) {
  return __shfl_sync(~0u, number, 0);
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
