// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/target.cuh"
#include "jrt/detail/cuda/linear/prefill_call.cuh"
#include "jrt/detail/cuda/linear/sm90/layout.cuh"
#include "jrt/detail/cuda/linear/sm90/schedule.cuh"
#include "jrt/detail/cuda/linear/sm90/state_warps.cuh"
#include "jrt/detail/cuda/linear/sm90/twin_layout.cuh"
#include "jrt/detail/cuda/linear/sm90/twin_state_warps.cuh"
#include "jrt/detail/plan/prefill_plan.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"

/// The kernels for sm_90a that only sum keys: the segments of a prefill, or whole sequences without queries.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

template <class Config>
struct HopperEngine : HopperLayout<Config> {
  static constexpr bool slices_need_partials = false;
};

/// Layout of the kernels of a prefill.
template <class Config>
using OutputLayout = std::conditional_t<TwinLayout<Config>::supported, TwinLayout<Config>, HopperLayout<Config>>;

/// Parameters shared by the kernels of one call.
template <class Config>
struct HopperCall : PrefillCall<Config, HopperEngine<Config>> {
  std::conditional_t<TwinLayout<Config>::supported, TwinMaps, HopperMaps> maps;
  // Copies of initial z, where slices of v would read z while another writes the final one: [sequences][heads][rows].
  float* initial_normalisers = nullptr;
  int group = 1;         // query heads that share a key head
  bool ordered = false;  // blocks start with the longest sequences
  // Sequences are short: a block itself sums all that lies before its segment, and there are no other kernels.
  bool sums_start = false;

  [[nodiscard]] __device__ bool starts_from_partials(const PrefillPlan& plan) const {
    return !sums_start && this->through_partials(plan);
  }
  [[nodiscard]] bool needs_partials() const {
    return !sums_start && PrefillCall<Config, HopperEngine<Config>>::needs_partials();
  }
};

/// Initialises barriers and ones. Thread 0 writes the barriers; called by all threads.
template <class Config, class Layout = HopperLayout<Config>>
__device__ void prepare_shared_memory() {
  if (shared_address(hopper_shared_memory) != Layout::base) {
    __trap();  // all addresses below assume it
  }
  const int thread = static_cast<int>(threadIdx.x);
  constexpr Pair one = HopperNumbers<typename Config::Element>::power_of_two(0);
  const Pair ones[4] = {one, one, one, one};
  const auto threads = static_cast<int>(blockDim.x);
  if constexpr (Layout::ones_apart) {
    for (int i = thread; i < Layout::ones_tile / 16; i += threads) {
      store_pairs(SharedNumbers::at(Layout::ones + 16 * i), ones);
    }
  } else {
    for (int t = thread; t < Layout::stages * Layout::chunk; t += threads) {
      const SharedAddress piece = Layout::value_piece(t / Layout::chunk, t % Layout::chunk, Layout::columns / 8);
      store_pairs(SharedNumbers::at(piece), ones);
    }
  }
  if (thread == 0) {
    for (int i = 0; i < Layout::stages; ++i) {
      barrier_init(Layout::keys_full + 8 * i, 1);
      barrier_init(Layout::keys_free + 8 * i, 4 * Layout::groups);
      barrier_init(Layout::query_full + 8 * i, 1);
      barrier_init(Layout::query_free + 8 * i, 4);
    }
    for (int i = 0; i < 2; ++i) {
      barrier_init(Layout::state_full + 8 * i, 4 * Layout::groups);
      barrier_init(Layout::state_free + 8 * i, 4);
    }
    barrier_init_fence();
  }
  async_proxy_fence();
  __syncthreads();
}

/// Calls `function` with the state warps that the calling thread is one of.
template <class Config, class Layout, int ring, class Function>
__device__ void as_state_warps(const Function& function) {
  if constexpr (Layout::groups == 1) {
    StateWarps<Config> state_warps;
    function(state_warps);
  } else if (threadIdx.x < 128) {
    TwinStateWarps<Config, 0, ring> state_warps;
    function(state_warps);
  } else {
    TwinStateWarps<Config, 1, ring> state_warps;
    function(state_warps);
  }
}

/// Adds a run of keys to `state_warps`, once `start()` has set them; called by all threads of a block of state warps, whose
/// shared memory is prepared.
template <class Schedule, class States, class Start>
__device__ void sum_run(States& state_warps, const Schedule& schedule, const TokenRun& run,
                        const typename Schedule::Maps& maps, const Start& start) {
  using Layout = typename Schedule::Layout;
  const bool copies = warp_uniform(static_cast<int>(threadIdx.x) / 32) == 0;
  const int chunks = Schedule::chunks_of(run.warp_uniform());
  for (int i = 0; copies && i < Layout::stages && i < chunks; ++i) {
    schedule.load_keys(maps, i);
  }
  start();
  state_warps.accumulate(run.warp_uniform(), [&] {
    const int done = state_warps.chunk() - 1;
    const int next = done + Layout::stages;
    if (copies && done >= 0 && next < chunks) {
      barrier_wait(Layout::keys_free + 8 * (done % Layout::stages), done / Layout::stages % 2);
      schedule.load_keys(maps, next);
    }
  });
}

template <class Config, class LayoutT = HopperLayout<Config>>
__global__ void __launch_bounds__(hopper_threads<LayoutT::state_warp_threads>, LayoutT::sum_blocks)
    segment_sums_sm90(const __grid_constant__ HopperCall<Config> call) {
  if constexpr (compiling_for_hopper) {
    using Call = HopperCall<Config>;
    using Layout = LayoutT;
    using Schedule = HopperSchedule<Config, Layout>;
    // The last segments are the longest: those of tokens, where encoder regions are shorter.
    const BlockItem item(gridDim.x - 1 - blockIdx.x, call.max_items(), call.heads, Layout::slices);
    const PrefillPlan plan = call.plan_of(item.sequence);
    let_next_kernel_start();  // lengths and slots have been read: what follows the last kernel may change them
    if (!Call::sums(plan, item)) {
      return;
    }
    const bool encoder = item.segment < plan.encoder_segments;
    const TokenRun run =
        encoder
            ? TokenRun(encoder_source(call.args, plan, item.head),
                       segment_of(plan.encoder, plan.encoder_segments, item.segment, Layout::chunk))
            : TokenRun(token_source(call.args, plan, item.head),
                       segment_of(plan.tokens, plan.token_segments, item.segment - plan.encoder_segments, Layout::chunk));
    const Schedule schedule(encoder ? run : TokenRun{}, TokenRun{}, encoder ? TokenRun{} : run, item.head, item.slice);
    if (threadIdx.x == 0) {
      store_pointer(Layout::final_state, call.partial_state(item.sequence, item.segment, item.head));
    }
    prepare_shared_memory<Config, Layout>();
    as_state_warps<Config, Layout, Layout::sum_ring>([&](auto& state_warps) {
      sum_run(state_warps, schedule, run, call.maps, [&] { state_warps.clear(); });
      state_warps.write(static_cast<float*>(load_pointer(Layout::final_state)), schedule.column);
    });
  }
}

/// Reads the state that a segment starts from.
template <class Config, class States>
__device__ void read_start(States& state_warps, const HopperCall<Config>& call, const PrefillPlan& plan,
                           const BlockItem& item, int column) {
  using Call = HopperCall<Config>;
  using Format = typename Call::Format;
  await_previous_kernel();  // needed here or not, so that a kernel that waits for this one has waited for all before it
  if (call.starts_from_partials(plan)) {
    const float* const partial = call.starting_state(plan, item);
    state_warps.read(partial, partial + Format::normaliser_offset, column);
  } else if (const auto* const initial = call.initial_state(item.sequence, item.head); initial != nullptr) {
    if constexpr (States::Layout::slices > 1) {
      if (!call.args.final_state.empty()) {
        state_warps.read(initial, call.initial_normalisers + (item.sequence * call.heads + item.head) * Format::rows,
                         column);
        return;
      }
    }
    state_warps.read(initial, initial + Format::normaliser_offset, column);
  } else {
    state_warps.clear();
  }
}

/// Writes the final state of a sequence without tokens: bitwise the initial one.
template <class Config>
__device__ void copy_state(const HopperCall<Config>& call, const BlockItem& item) {
  using Call = HopperCall<Config>;
  using Scalar = typename Call::Format::Scalar;
  await_previous_kernel();
  const Scalar* const initial = call.initial_state(item.sequence, item.head);
  Scalar* const final_state = call.final_state(item.sequence, item.head);
  if (final_state == nullptr || initial == final_state || item.slice > 0) {
    return;
  }
  for (std::int64_t i = threadIdx.x; i < Call::Format::normaliser_offset + Call::Format::rows; i += blockDim.x) {
    final_state[i] = initial == nullptr ? Scalar{} : initial[i];
  }
}

/// Sums of whole sequences without queries, of one or two calls: from the initial states to the final ones.
template <class Config>
__global__ void __launch_bounds__(hopper_threads<HopperLayout<Config>::state_warp_threads>,
                                  HopperLayout<Config>::sum_blocks)
    sums_of_sequences_sm90(const __grid_constant__ HopperCall<Config> first,
                           const __grid_constant__ HopperCall<Config> second) {
  if constexpr (compiling_for_hopper) {
    using Layout = HopperLayout<Config>;
    using Schedule = HopperSchedule<Config>;
    const std::int64_t of_first = first.sequences * first.heads * Layout::slices;
    const bool in_first = blockIdx.x < of_first;
    const HopperCall<Config>& call = in_first ? first : second;
    const BlockItem item(in_first ? blockIdx.x : blockIdx.x - of_first, 1, call.heads, Layout::slices);
    const PrefillPlan plan = call.plan_of(item.sequence);
    let_next_kernel_start();  // as above
    if (plan.skipped) {
      return;
    }
    const TokenRun run(encoder_source(call.args, plan, item.head), plan.encoder);
    if (run.tokens == 0) {
      copy_state(call, item);
      return;
    }
    const Schedule schedule(run, TokenRun{}, TokenRun{}, item.head, item.slice);
    prepare_shared_memory<Config, Layout>();
    StateWarps<Config> state_warps;
    sum_run(state_warps, schedule, run, call.maps, [&] { read_start(state_warps, call, plan, item, schedule.column); });
    if (auto* const final_state = call.final_state(item.sequence, item.head); final_state != nullptr) {
      state_warps.write(final_state, schedule.column);
    }
  }
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
