// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/sm90/target.cuh"
#include "jrt/detail/cuda/core/sm90/tensor_map.cuh"
#include "jrt/detail/cuda/linear/prefill_call.cuh"
#include "jrt/detail/cuda/linear/sm90/layout.cuh"
#include "jrt/detail/cuda/linear/sm90/output_warps.cuh"
#include "jrt/detail/cuda/linear/sm90/schedule.cuh"
#include "jrt/detail/cuda/linear/sm90/state_warps.cuh"
#include "jrt/detail/cuda/linear/sm90/sums.cuh"
#include "jrt/detail/cuda/linear/sm90/twin_layout.cuh"
#include "jrt/detail/cuda/linear/sm90/twin_state_warps.cuh"
#include "jrt/detail/plan/prefill_plan.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/workspace.hpp"

/// Prefill on Hopper GPUs: the kernels of prefill_call.cuh for sm_90a. docs/hopper-kernel.md explains them with pictures.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

template <class Config, QueryHeads heads>
__global__ void __launch_bounds__(hopper_threads<OutputLayout<Config>::output_threads>, OutputLayout<Config>::output_blocks)
    segment_outputs_sm90(const __grid_constant__ HopperCall<Config> call) {
  if constexpr (compiling_for_hopper) {
    using Call = HopperCall<Config>;
    using Layout = OutputLayout<Config>;
    using Schedule = HopperSchedule<Config, Layout>;
    // Where blocks sum what is before their segments, the last segments are the longest.
    const std::int64_t block = call.sums_start ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    BlockItem item(block, call.limits.max_token_segments, call.heads, Layout::slices);
    if (call.ordered) {
      item.sequence = ordered_sequence<Layout, Config::Mask::reads_encoder>(
          call.args.sequences, static_cast<int>(call.sequences), static_cast<int>(item.sequence));
    }
    const PrefillPlan plan = call.plan_of(item.sequence);
    if (item.segment == 0 && item.slice == 0) {
      zero_outputs(call, plan, item.head);
    }
    if (plan.skipped || item.segment >= plan.token_segments) {
      return;
    }
    const bool through = call.starts_from_partials(plan);
    TokenRun encoder;
    if constexpr (Config::Mask::reads_encoder) {
      if (!through) {
        encoder = TokenRun(encoder_source(call.args, plan, item.head), plan.encoder);
      }
    }
    const TokenRange tokens = segment_of(plan.tokens, plan.token_segments, item.segment, Layout::chunk);
    const TokenRun own(token_source(call.args, plan, item.head), tokens);
    TokenRun before;
    if (call.sums_start) {
      before = TokenRun(token_source(call.args, plan, item.head), {plan.tokens.begin, tokens.begin});
    }
    const Schedule schedule(encoder, before, own, item.head, item.slice);
    if (!through && schedule.encoder.tokens + schedule.own.tokens == 0) {
      copy_state(call, item);
      return;
    }
    if (threadIdx.x == 0) {
      store_pointer(Layout::final_state, call.final_destination(plan, item));
    }
    prepare_shared_memory<Config, Layout>();
    // With the full mask, all tokens are summed before the first is read; of a split sequence, by the kernels before.
    const bool sums_own = Call::full && !through;
    const auto keep_state = [&](auto& state_warps) {
      read_start(state_warps, call, plan, item, schedule.column);
      if constexpr (Config::Mask::reads_encoder) {
        state_warps.accumulate(schedule.encoder, [] {});
      }
      if constexpr (!Call::full) {
        state_warps.accumulate(schedule.before, [] {});
      }
      if constexpr (Call::full) {
        if (sums_own) {
          state_warps.accumulate(schedule.own, [] {});
        }
        state_warps.publish_last();
      } else {
        state_warps.publish_and_accumulate(schedule.own);
      }
      if (void* const final_state = load_pointer(Layout::final_state); final_state != nullptr) {
        state_warps.write(static_cast<typename Call::Format::Scalar*>(final_state), schedule.column);
      }
    };
    if (threadIdx.x < Layout::state_warp_threads) {
      take_registers<Layout::state_registers>();
      as_state_warps<Config, Layout, Layout::output_ring>(keep_state);
    } else {
      give_registers<Layout::output_registers>();
      const OutputWarps<Config, heads, Layout> output_warps(call.maps, schedule, call.args.output, call.args.denominators,
                                                            call.group);
      output_warps.start_copies(sums_own);
      __syncwarp();
      if constexpr (has_queries<Config>) {
        output_warps.write_outputs();
      }
    }
  }
}

/// Copies z of every initial state, in float.
template <class Config>
__global__ void copy_normalisers(const __grid_constant__ HopperCall<Config> call) {
  using Format = typename HopperCall<Config>::Format;
  const std::int64_t b = blockIdx.x / call.heads;
  const std::int64_t head = blockIdx.x % call.heads;
  if (call.plan_of(b).skipped) {
    return;
  }
  if (const auto* const initial = call.initial_state(b, head); initial != nullptr) {
    for (int r = static_cast<int>(threadIdx.x); r < Format::rows; r += static_cast<int>(blockDim.x)) {
      call.initial_normalisers[(b * call.heads + head) * Format::rows + r] =
          convert<float>(initial[Format::normaliser_offset + r]);
    }
  }
}

/// Sizes, slices the workspace, describes the tensors, and launches.
template <class Config>
class HopperPrefill {
 public:
  using Call = HopperCall<Config>;
  using Layout = HopperLayout<Config>;

  /// Whether kernels for this operator and device exist and are compiled.
  static bool available(const Cuda& on) {
    if (on.compute_capability() != 90 || on.reserved_shared_bytes() != static_cast<int>(Layout::base)) {
      return false;
    }
    return kernel_exists<segment_outputs_sm90<Config, QueryHeads::one>, OutputLayout<Config>::output_threads>() &&
           tensor_map_encoder() != nullptr;
  }

  HopperPrefill(const PrefillInputOf<Config>& args, std::int64_t sequences, std::int64_t heads, const Cuda& on) {
    call_.args = args;
    call_.sequences = sequences;
    call_.heads = heads;
    call_.group = static_cast<int>(args.query.heads / larger<std::int64_t>(heads, 1));
    SplitLimits limits{sequences * heads, std::int64_t{on.multiprocessors()} * OutputLayout<Config>::output_blocks,
                       Layout::chunk};
    limits.min_segments = hopper_tuning<typename Config::Element>.min_segments;
    limits.tokens_per_worker = hopper_tuning<typename Config::Element>.tokens_per_worker;
    call_.limits = limits_of(args, limits);
    constexpr HopperTuning tuning = hopper_tuning<typename Config::Element>;
    call_.ordered = has_queries<Config> && call_.limits.max_token_segments == 1 && sequences > 1 &&
                    sequences <= tuning.max_ordered &&
                    args.query.batch * args.query.tokens >= sequences * tuning.min_ordered_tokens &&
                    (args.sequences.cu_seqlens != nullptr || args.sequences.seq_lens != nullptr);
    // A final state may be in the initial one's place: blocks could read what another has written.
    const auto chunks = [](std::int64_t tokens) { return ceil_div<std::int64_t>(tokens, Layout::chunk); };
    call_.sums_start = !Call::full && has_queries<Config> && call_.needs_partials() &&
                       (args.initial_state.empty() || args.final_state.empty()) &&
                       chunks(most_tokens(args)) + chunks(most_encoder_tokens(args)) <= tuning.max_summed_chunks;
  }

  /// States come from the last kernel of the stream, all else is older; `even`: no sequence is much longer than others.
  void follow_scan(bool even) {
    follows_scan_ = true;
    call_.ordered = call_.ordered && !even;
  }

  /// Describes the tensors; false if the copy engine cannot read one of them.
  [[nodiscard]] bool describe_tensors() {
    const TensorBox inputs{Layout::chunk, Layout::input_columns, CU_TENSOR_MAP_SWIZZLE_32B};
    const TensorBox values{Layout::chunk, Layout::columns, CU_TENSOR_MAP_SWIZZLE_128B};
    const TensorBox outputs{16, smaller(OutputLayout<Config>::columns, 64), CU_TENSOR_MAP_SWIZZLE_128B};
    const auto& args = call_.args;
    auto& maps = call_.maps;
    if (ceil_div<std::int64_t>(args.query.tokens, Layout::chunk) * call_.group > INT32_MAX) {
      return false;  // steps are counted in 32 bits
    }
    if constexpr (TwinLayout<Config>::supported) {
      using Twin = TwinLayout<Config>;
      for (const int i : {0, 1}) {
        const TensorBox block{Twin::chunk, i == 0 ? Twin::block_columns : Twin::last_columns, CU_TENSOR_MAP_SWIZZLE_128B};
        if (!describe(args.value, block, maps.value_blocks[i]) ||
            !describe(args.value_encoder, block, maps.value_encoder_blocks[i])) {
          return false;
        }
      }
    } else if (!describe(args.value, values, maps.value) || !describe(args.value_encoder, values, maps.value_encoder)) {
      return false;
    }
    return describe(args.query, inputs, maps.query) && describe(args.key, inputs, maps.key) &&
           describe(args.key_encoder, inputs, maps.key_encoder) && describe(args.output, outputs, maps.output);
  }

  void take(Arena& arena) {
    if (call_.needs_partials()) {
      call_.take_partial_states(arena);
    }
    if (OutputLayout<Config>::slices > 1) {
      call_.initial_normalisers = arena.take<float>(call_.sequences * call_.heads * Call::Format::rows);
    }
  }

  /// Whether the call has no queries, and one kernel forms its sums.
  [[nodiscard]] bool only_sums() const { return !has_queries<Config> && !call_.needs_partials(); }

  /// Of one such call, or two at a time.
  static Status run_sums(const char* operation, const HopperPrefill& first, const HopperPrefill* second, const Cuda& on) {
    Call none = first.call_;
    none.sequences = 0;
    std::int64_t blocks = 0;
    Status status;
    for (const HopperPrefill* const prefill : {&first, second}) {
      if (prefill != nullptr && status.ok()) {
        status = prefill->copy_initial_normalisers(operation, on);
        blocks += prefill->call_.sequences * prefill->call_.heads * Layout::slices;
      }
    }
    return !status.ok()
               ? status
               : launch(operation, sums_of_sequences_sm90<Config>, {blocks, Layout::state_warp_threads, Layout::sum_bytes},
                        on, first.call_, second == nullptr ? none : second->call_);
  }

  Status run(const char* operation, const Cuda& on) const {
    if constexpr (!has_queries<Config>) {
      if (only_sums()) {
        return run_sums(operation, *this, nullptr, on);
      }
    }
    Status status = copy_initial_normalisers(operation, on);
    using Outputs = OutputLayout<Config>;
    Grid outputs{call_.sequences * call_.limits.max_token_segments * call_.heads * Outputs::slices, Outputs::output_threads,
                 Outputs::output_bytes};
    outputs.starts_early = follows_scan_ && Outputs::slices == 1;
    if (status.ok() && call_.needs_partials()) {
      const std::int64_t items = call_.sequences * call_.max_items() * call_.heads;
      status = launch(operation, segment_sums_sm90<Config, Outputs>,
                      {items * Outputs::slices, Outputs::state_warp_threads, Outputs::sum_bytes}, on, call_);
      if (status.ok()) {
        status = launch(operation, state_scan<Call>, scan_grid(call_, true), on, call_);
      }
      outputs.starts_early = true;
    }
    if (!status.ok()) {
      return status;
    }
    return call_.group > 1 ? launch(operation, segment_outputs_sm90<Config, QueryHeads::grouped>, outputs, on, call_)
                           : launch(operation, segment_outputs_sm90<Config, QueryHeads::one>, outputs, on, call_);
  }

 private:
  [[nodiscard]] Status copy_initial_normalisers(const char* operation, const Cuda& on) const {
    const bool needed =
        OutputLayout<Config>::slices > 1 && !call_.args.initial_state.empty() && !call_.args.final_state.empty();
    return needed ? launch(operation, copy_normalisers<Config>, {call_.sequences * call_.heads, 128, 0}, on, call_)
                  : Status();
  }

  Call call_;
  bool follows_scan_ = false;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
