// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include <cstdint>
#include <jrt/detail/cuda/core/sm90/instructions.cuh>

/// Copies of tiles of matrices by the copy engine (TMA), and what the blocks of a cluster tell one another. Names and
/// semantics follow the PTX ISA; functions are called by whole warps, of which one elected lane acts, unless they say so.
namespace jrt_lm {

using jrt::detail::cuda::SharedAddress;

/// Copies a box of a matrix to shared memory; `barrier` counts its bytes.
__device__ __forceinline__ void load_box(SharedAddress to, const CUtensorMap& matrix, int column, int row,
                                         SharedAddress barrier) {
  asm volatile(
      "{\n"
      ".reg .pred one;\n"
      "elect.sync _|one, 0xffffffff;\n"
      "@one cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3,%4}], [%2];\n"
      "}\n"
      :
      : "r"(to), "l"(&matrix), "r"(barrier), "r"(column), "r"(row)
      : "memory");
}
/// Copies a box from shared memory, in a group of copies that `end_stores` closes.
__device__ __forceinline__ void store_box(const CUtensorMap& matrix, SharedAddress from, int column, int row) {
  asm volatile(
      "{\n"
      ".reg .pred one;\n"
      "elect.sync _|one, 0xffffffff;\n"
      "@one cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2,%3}], [%1];\n"
      "}\n"
      :
      : "l"(&matrix), "r"(from), "r"(column), "r"(row)
      : "memory");
}
__device__ __forceinline__ void end_stores() {
  asm volatile("cp.async.bulk.commit_group;" : : : "memory");
}
__device__ __forceinline__ void prefetch_map(const CUtensorMap& matrix) {
  asm volatile("prefetch.tensormap [%0];" : : "l"(&matrix) : "memory");
}

// -- clusters ------------------------------------------------------------------

__device__ __forceinline__ int cluster_rank() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
/// All threads of the cluster.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" : : : "memory");
}
/// The same address in another block of the cluster.
__device__ __forceinline__ SharedAddress address_in(int rank, SharedAddress own) {
  SharedAddress other;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(other) : "r"(own), "r"(rank));
  return other;
}
/// By one thread: arrives at a barrier of any block of the cluster, after all that it has stored there.
__device__ __forceinline__ void release_in_cluster(SharedAddress barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" : : "r"(barrier) : "memory");
}
/// Waits for a phase whose arrivals are other blocks'; by any thread.
__device__ __forceinline__ void wait_for_cluster(SharedAddress barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1, 0x989680;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:\n"
      "}\n"
      :
      : "r"(barrier), "r"(parity)
      : "memory");
}
__device__ __forceinline__ void store_in_cluster(SharedAddress to, float a, float b, float c, float d) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1,%2,%3,%4};" : : "r"(to), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}

}  // namespace jrt_lm
