// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/linear/prefill_call.cuh"
#include "jrt/detail/plan/prefill_plan.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/workspace.hpp"

/// The bodies of prefill_call.cuh's kernels for engines that process a segment's tokens one chunk after the other, and
/// their launch. An engine (MmaEngine, SimtEngine, WarpgroupEngine, SplitEngine) is constructed from arguments, shared
/// memory, scratch memory and slice; `for_state`, `accumulate` and `outputs` are described in simt_engine.cuh.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

template <class Call>
__device__ typename Call::Engine engine_of(const Call& call, std::byte* shared, const BlockItem& item) {
  using Engine = typename Call::Engine;
  return Engine(call.args, shared, call.scratch + std::int64_t{blockIdx.x} * Engine::scratch_bytes, item.slice);
}

/// Forms one segment's own sum.
template <class Call>
__device__ void sum_segment(const Call& call, std::byte* shared) {
  const BlockItem item(blockIdx.x, call.max_items(), call.heads, Call::Engine::slices);
  const PrefillPlan plan = call.plan_of(item.sequence);
  if (!Call::sums(plan, item)) {
    return;
  }
  auto engine = engine_of(call, shared, item);
  engine.for_state([](std::int64_t, auto& number, bool) { number = 0; });
  if (item.segment < plan.encoder_segments) {
    engine.accumulate(encoder_source(call.args, plan, item.head),
                      segment_of(plan.encoder, plan.encoder_segments, item.segment, call.limits.chunk));
  } else {
    engine.accumulate(
        token_source(call.args, plan, item.head),
        segment_of(plan.tokens, plan.token_segments, item.segment - plan.encoder_segments, call.limits.chunk));
  }
  auto* const partial = call.partial_state(item.sequence, item.segment, item.head);
  engine.for_state([&](std::int64_t i, auto& number, bool written) {
    if (written) {
      partial[i] = number;
    }
  });
}

/// Computes the state from which a block's segment starts; false if there is nothing to do.
template <class Call>
__device__ bool start_segment(const Call& call, const BlockItem& item, typename Call::Engine& engine) {
  using Config = typename Call::Config;
  using T = typename Call::T;
  const PrefillPlan plan = call.plan_of(item.sequence);
  if (item.segment == 0 && item.slice == 0) {
    zero_outputs(call, plan, item.head);
  }
  if (plan.skipped || item.segment >= plan.token_segments) {
    return false;
  }
  if (Call::through_partials(plan)) {
    const T* const partial = call.starting_state(plan, item);
    engine.for_state([&](std::int64_t i, auto& number, bool) { number = partial[i]; });
    return true;
  }
  if (const auto* const initial = call.initial_state(item.sequence, item.head); initial != nullptr) {
    engine.for_state([&](std::int64_t i, auto& number, bool) { number = convert<T>(initial[i]); });
  } else {
    engine.for_state([](std::int64_t, auto& number, bool) { number = 0; });
  }
  if constexpr (Config::Mask::reads_encoder) {
    engine.accumulate(encoder_source(call.args, plan, item.head), plan.encoder);
  }
  if constexpr (Call::full) {
    engine.accumulate(token_source(call.args, plan, item.head), plan.tokens);
  }
  return true;
}

/// Computes one segment's outputs, and the final state if it is the last.
template <class Call>
__device__ void output_segment(const Call& call, std::byte* shared) {
  using Config = typename Call::Config;
  using Scalar = typename Call::Format::Scalar;
  const BlockItem item(blockIdx.x, call.limits.max_token_segments, call.heads, Call::Engine::slices);
  auto engine = engine_of(call, shared, item);
  if (!start_segment(call, item, engine)) {
    return;
  }
  const PrefillPlan plan = call.plan_of(item.sequence);
  if constexpr (has_queries<Config>) {
    engine.outputs(token_source(call.args, plan, item.head),
                   segment_of(plan.tokens, plan.token_segments, item.segment, call.limits.chunk));
  }
  if (Scalar* const state = call.final_destination(plan, item); state != nullptr) {
    engine.for_state([&](std::int64_t i, auto& number, bool written) {
      if (written) {
        state[i] = convert<Scalar>(number);
      }
    });
  }
}

/// Sizes, slices the workspace, and launches. `Kernels` names the call and its two kernels.
template <class Kernels>
class EnginePrefill {
 public:
  using Call = typename Kernels::Call;
  using Config = typename Call::Config;
  using Engine = typename Call::Engine;

  EnginePrefill(const PrefillInputOf<Config>& args, std::int64_t sequences, std::int64_t heads, const Cuda& on) {
    call_.args = args;
    call_.sequences = sequences;
    call_.heads = heads;
    // As many blocks as the multiprocessors hold at a time.
    const std::int64_t workers = std::int64_t{on.multiprocessors()} * Engine::blocks_per_multiprocessor;
    call_.limits = limits_of(args, {sequences * heads, workers, Engine::chunk});
  }

  void take(Arena& arena) {
    call_.take_partial_states(arena);
    call_.scratch = arena.take<std::byte>(larger(sum_blocks(), output_blocks()) * Engine::scratch_bytes);
  }

  Status run(const char* operation, const Cuda& on) const {
    Status status;
    if (call_.needs_partials()) {
      status = launch(operation, Kernels::sums, {sum_blocks(), Engine::threads, Engine::shared_bytes}, on, call_);
      if (status.ok()) {
        status = launch(operation, state_scan<Call>, scan_grid(call_, false), on, call_);
      }
    }
    return !status.ok()
               ? status
               : launch(operation, Kernels::outputs, {output_blocks(), Engine::threads, Engine::shared_bytes}, on, call_);
  }

 private:
  [[nodiscard]] std::int64_t sum_blocks() const {
    return call_.needs_partials() ? call_.sequences * call_.max_items() * call_.heads * Engine::slices : 0;
  }
  [[nodiscard]] std::int64_t output_blocks() const {
    return call_.sequences * call_.limits.max_token_segments * call_.heads * Engine::slices;
  }

  Call call_;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
