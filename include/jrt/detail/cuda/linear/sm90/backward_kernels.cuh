// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/sm90/target.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_call.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_key_warps.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_query_warps.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_state_warps.cuh"
#include "jrt/detail/plan/segment.hpp"
#include "jrt/detail/plan/sequence_runs.hpp"

/// The kernels of a backward call on Hopper, but for the encoder region's.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The block's own tokens.
template <class Config>
__device__ TokenRange own_tokens(const HopperBackwardCall<Config>& call, const PrefillPlan& plan, std::int64_t segment) {
  return segment_of(plan.tokens, plan.token_segments, segment, call.limits.chunk);
}

/// Both passes: `queries` writes the gradients of q and the token records, `keys` those of k and v and the sum R of all
/// tokens. `more`: whether another kernel of the call follows.
template <class Config, BackwardPass pass>
__global__ void __launch_bounds__(hopper_threads<BackwardTiles<Config>::threads>, hopper_backward_tuning.blocks)
    segment_gradients_sm90(const __grid_constant__ HopperBackwardCall<Config> call, const bool more) {
  if constexpr (compiling_for_hopper) {
    using Layout = BackwardLayout<Config, pass>;
    using Schedule = BackwardSchedule<Config, pass>;
    const BlockItem item(blockIdx.x, call.limits.max_token_segments, call.query_heads, 1);
    const std::int64_t key_head = item.head / call.group;
    const PrefillPlan plan = call.plan_of(item.sequence);
    if (more) {
      let_next_kernel_start();
    }
    await_previous_kernel();
    if (item.segment == 0) {
      const TokenRange present = plan.skipped ? TokenRange{0, 0} : plan.tokens;
      const auto zero = [&](const auto& view) {
        zero_rows_outside(view, plan.span.batch_row, plan.span.first_token, present, plan.span.row_tokens, item.head);
      };
      if constexpr (Layout::queries) {
        zero(call.query_gradient);
      } else {
        zero(call.key_gradient);
        zero(call.value_gradient);
      }
    }
    if (plan.skipped || item.segment >= plan.token_segments) {
      return;
    }
    const TokenRange range = own_tokens(call, plan, item.segment);
    TokenRun encoder;
    if constexpr (Layout::queries && Config::Mask::reads_encoder) {
      if (!plan.split()) {
        encoder = TokenRun(encoder_source(call.args, plan, key_head), plan.encoder);
      }
    }
    const Schedule schedule(encoder, TokenRun(token_source(call.args, plan, key_head), range), item.head, key_head,
                            call.records_of(plan, item.head, range.begin));
    prepare_backward_memory<Config, pass>();
    if (threadIdx.x < Layout::state_warp_threads) {
      take_registers<hopper_backward_tuning.state_registers>();
      BackwardStateWarps<Config, pass> state_warps;
      if constexpr (Layout::queries) {
        if (plan.split()) {
          state_warps.read(call.start(plan, item.segment, key_head));
        } else {
          state_warps.read(call.initial_state(item.sequence, key_head));
        }
        state_warps.accumulate(schedule.encoder, [] {});
      } else {
        state_warps.read(plan.token_segments > 1 ? call.reverse_sum(item.sequence, item.segment, item.head)
                                                 : call.final_gradient(item.sequence, item.head));
      }
      state_warps.publish_and_accumulate(schedule.own);
      if (!Layout::queries && plan.token_segments == 1) {
        state_warps.write(call.reverse_total(item.sequence, item.head));
      }
    } else {
      give_registers<hopper_backward_tuning.gradient_registers>();
      using Warps = std::conditional_t<Layout::queries, QueryGradientWarps<Config>, KeyGradientWarps<Config>>;
      const Warps gradient_warps(call, schedule);
      gradient_warps.start_copies();
      __syncwarp();
      gradient_warps.write_gradients();
    }
  }
}

/// Σ f·φ(q)·[dy | c] of every segment of the sequences that are split.
template <class Config>
__global__ void __launch_bounds__(hopper_threads<BackwardTiles<Config>::state_warp_threads>, 3)
    reverse_sums_sm90(const __grid_constant__ HopperBackwardCall<Config> call) {
  if constexpr (compiling_for_hopper) {
    constexpr BackwardPass pass = BackwardPass::keys;
    using Layout = BackwardLayout<Config, pass>;
    using Schedule = BackwardSchedule<Config, pass>;
    const BlockItem item(blockIdx.x, call.limits.max_token_segments, call.query_heads, 1);
    const std::int64_t key_head = item.head / call.group;
    const PrefillPlan plan = call.plan_of(item.sequence);
    let_next_kernel_start();
    await_previous_kernel();
    if (plan.skipped || plan.token_segments == 1 || item.segment >= plan.token_segments) {
      return;
    }
    const TokenRange range = own_tokens(call, plan, item.segment);
    const Schedule schedule({}, TokenRun(token_source(call.args, plan, key_head), range), item.head, key_head,
                            call.records_of(plan, item.head, range.begin));
    const bool copies = warp_uniform(static_cast<int>(threadIdx.x) / 32) == 0;
    prepare_backward_memory<Config, pass>();
    const int chunks = schedule.own_chunks();
    for (int i = 0; copies && i < Layout::stages && i < chunks; ++i) {
      schedule.load_summed(call.maps, i);
    }
    BackwardStateWarps<Config, pass> state_warps;
    state_warps.clear();
    state_warps.accumulate(schedule.own, [&] {
      const int done = state_warps.chunk() - 1;
      const int next = done + Layout::stages;
      if (copies && done >= 0 && next < chunks) {
        barrier_wait(Layout::summed_free + 8 * (done % Layout::stages), done / Layout::stages % 2);
        schedule.load_summed(call.maps, next);
      }
    });
    state_warps.write(call.reverse_sum(item.sequence, item.segment, item.head));
  }
}

/// Replaces every segment's sum by the R that it starts from, dS_T and the sums of the segments after it. One thread for
/// each value, as in `state_scan`.
template <class Config>
__global__ void __launch_bounds__(state_scan_tuning.threads)
    reverse_scan_sm90(const __grid_constant__ HopperBackwardCall<Config> call) {
  using Call = HopperBackwardCall<Config>;
  constexpr unsigned blocks = ceil_div(Call::state_numbers, state_scan_tuning.threads);
  const std::int64_t head_of_all = blockIdx.x / blocks;
  const std::int64_t head = head_of_all % call.query_heads;
  const std::int64_t b = head_of_all / call.query_heads;
  const int i = static_cast<int>(blockIdx.x % blocks * state_scan_tuning.threads + threadIdx.x);
  const PrefillPlan plan = call.plan_of(b);
  let_next_kernel_start();
  await_previous_kernel();
  if (plan.skipped || plan.token_segments == 1 || i >= Call::state_numbers) {
    return;
  }
  const float* const final_gradient = call.final_gradient(b, head);
  float running = final_gradient != nullptr ? final_gradient[i] : 0.0F;
  const std::int64_t stride = call.query_heads * Call::partial_elements;
  float* const sums = call.reverse_sum(b, 0, head) + i;
  constexpr int at_a_time = state_scan_tuning.loads_in_flight;
  for (auto last = static_cast<int>(plan.token_segments) - 1; last >= 0; last -= at_a_time) {
    float own[at_a_time];
#pragma unroll
    for (int j = 0; j < at_a_time; ++j) {
      own[j] = last - j >= 0 ? sums[(last - j) * stride] : 0.0F;
    }
#pragma unroll
    for (int j = 0; j < at_a_time; ++j) {
      if (last - j >= 0) {
        sums[(last - j) * stride] = running;
      }
      running += own[j];
    }
  }
  call.reverse_total(b, head)[i] = running;
}

/// Gradients of the initial states: R of all tokens, summed over the query heads of a key head in their order.
template <class Config>
__global__ void __launch_bounds__(state_scan_tuning.threads)
    initial_gradients_sm90(const __grid_constant__ HopperBackwardCall<Config> call) {
  using Call = HopperBackwardCall<Config>;
  constexpr unsigned blocks = ceil_div(Call::state_numbers, state_scan_tuning.threads);
  const std::int64_t head_of_all = blockIdx.x / blocks;
  const std::int64_t head = head_of_all % call.heads;
  const std::int64_t b = head_of_all / call.heads;
  const int i = static_cast<int>(blockIdx.x % blocks * state_scan_tuning.threads + threadIdx.x);
  await_previous_kernel();
  if (i >= Call::state_numbers || !call.initial_state_gradient.has_slot(b)) {
    return;
  }
  float sum = 0;
  if (!call.plan_of(b).skipped) {
    for (std::int64_t g = 0; g < call.group; ++g) {
      sum += call.reverse_total(b, head * call.group + g)[i];
    }
  }
  call.initial_state_gradient.pool.head(call.initial_state_gradient.slot(b), head)[i] = sum;
}

/// Gradients of k and v where query heads share a key head: those of each query head, in the workspace, added up in their
/// order. A block takes 64 rows of one key head.
template <class Config>
__global__ void __launch_bounds__(128) group_gradients_sm90(const __grid_constant__ HopperBackwardCall<Config> call,
                                                            const TensorView<typename Config::Element> key_gradient,
                                                            const TensorView<typename Config::Element> value_gradient) {
  using Element = typename Config::Element;
  constexpr int rows = BackwardTiles<Config>::chunk;
  const std::int64_t head = blockIdx.x % call.heads;
  const RowRun run(call.args.sequences, call.args.query.tokens, blockIdx.x / call.heads, rows);
  const SequenceSpan span =
      within_views(sequence_span(call.args.sequences, run.b, call.args.query.tokens, call.args.key_encoder.tokens),
                   call.args.query.tokens, call.args.key_encoder.tokens);
  await_previous_kernel();
  if (!run.within(span)) {
    return;
  }
  const auto present = static_cast<int>(smaller<std::int64_t>(rows, span.row_tokens - run.first_row));
  const auto sum = [&](const TensorView<Element>& from, const TensorView<Element>& to) {
    if (from.data == nullptr) {
      return;
    }
    const int vectors = static_cast<int>(to.dim) / 8;
    for (int i = static_cast<int>(threadIdx.x); i < present * vectors; i += static_cast<int>(blockDim.x)) {
      const std::int64_t token = span.first_token + run.first_row + i / vectors;
      const int column = i % vectors * 8;
      float sums[8] = {};
      for (std::int64_t g = 0; g < call.group; ++g) {
        const auto own = load_vector<8>(from.row(span.batch_row, token, head * call.group + g) + column);
        for (int c = 0; c < 8; ++c) {
          sums[c] += convert<float>(own[c]);
        }
      }
      Vector<Element, 8> rounded;
      for (int c = 0; c < 8; ++c) {
        rounded[c] = convert<Element>(sums[c]);
      }
      store_vector(to.row(span.batch_row, token, head) + column, rounded);
    }
  };
  sum(call.key_gradient, key_gradient);
  sum(call.value_gradient, value_gradient);
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
