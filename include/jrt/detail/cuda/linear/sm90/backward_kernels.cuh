// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/sm90/target.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/core/warp_sum.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_call.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_key_warps.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_query_warps.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_state_warps.cuh"
#include "jrt/detail/plan/backward_plan.hpp"
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
    const BlockItem item(blockIdx.x, call.limits.max_token_segments, call.query_heads, Layout::slices);
    const std::int64_t sliced_head = Schedule::sliced_head(item);
    const PrefillPlan plan = call.plan_of(item.sequence);
    if (more) {
      let_next_kernel_start();
    }
    await_previous_kernel();
    if (item.segment == 0) {
      const TokenRange kept = Layout::queries ? plan.tokens : keys_with_gradient<Config>(plan);
      const TokenRange present = plan.skipped ? TokenRange{0, 0} : kept;
      const auto zero = [&](const auto& view, std::int64_t head) {
        zero_rows_outside(view, plan.span.batch_row, plan.span.first_token, present, plan.span.row_tokens, head);
      };
      if constexpr (Layout::queries) {
        zero(call.query_gradient, sliced_head);
      } else {
        zero(call.key_gradient, sliced_head);
        if (item.slice == 0) {
          zero(call.value_gradient, item.head);
        }
      }
    }
    if (plan.skipped || item.segment >= plan.token_segments) {
      return;
    }
    const TokenRange range = own_tokens(call, plan, item.segment);
    TokenRun encoder;
    if constexpr (Layout::queries && Config::Mask::reads_encoder) {
      if (!plan.split()) {
        encoder = TokenRun(encoder_source(call.args, plan, item.head / call.group), plan.encoder);
      }
    }
    const Schedule schedule(call, plan, item, encoder, range);
    prepare_backward_memory<Config, pass>();
    if (threadIdx.x < Layout::state_warp_threads) {
      take_registers<hopper_backward_tuning.state_registers>();
      BackwardStateWarps<Config, pass> state_warps;
      if constexpr (Layout::queries) {
        if (plan.split()) {
          state_warps.read(call.start(plan, item));
        } else {
          state_warps.read(call.initial_state(item));
        }
        state_warps.accumulate(schedule.encoder, [] {});
      } else if (plan.token_segments > 1) {
        state_warps.read(StateSlice<GradientSliceFormat<Config>, const float>{
            call.reverse_sum(item.sequence, item.segment, sliced_head)});
      } else {
        state_warps.read(call.final_gradient(item.sequence, sliced_head));
      }
      state_warps.publish_and_accumulate(schedule.own);
      if (!Layout::queries && plan.token_segments == 1) {
        state_warps.write(call.reverse_total(item.sequence, sliced_head));
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

/// dy·y of every query, where pass `queries` does not form it from the sums. Eight lanes take a row.
template <class Config>
__global__ void __launch_bounds__(256) output_products_sm90(const __grid_constant__ HopperBackwardCall<Config> call) {
  constexpr int lanes = 8;
  const auto& of = call.output_products;
  const std::int64_t row = (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / lanes;
  const bool there = row < of.batch * of.tokens * of.heads;
  const std::int64_t head = there ? row % of.heads : 0;
  const std::int64_t token = there ? row / of.heads % of.tokens : 0;
  const std::int64_t b = there ? row / of.heads / of.tokens : 0;
  let_next_kernel_start();
  await_previous_kernel();
  float product = 0;
  for (int c = static_cast<int>(threadIdx.x % lanes) * 8; c < Config::value_dim; c += lanes * 8) {
    const auto y = load_vector<8>(call.output.row(b, token, head) + c);
    const auto dy = load_vector<8>(call.output_gradient.row(b, token, head) + c);
    for (int e = 0; e < 8; ++e) {
      product += convert<float>(y[e]) * convert<float>(dy[e]);
    }
  }
  product = warp_sum<lanes>(product);
  if (there && threadIdx.x % lanes == 0) {
    *of.row(b, token, head) = product;
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
    const BlockItem item(blockIdx.x, call.limits.max_token_segments, call.query_heads, Layout::slices);
    const PrefillPlan plan = call.plan_of(item.sequence);
    let_next_kernel_start();
    await_previous_kernel();
    if (plan.skipped || plan.token_segments == 1 || item.segment >= plan.token_segments) {
      return;
    }
    const Schedule schedule(call, plan, item, {}, own_tokens(call, plan, item.segment));
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
    state_warps.write(call.reverse_sum(item.sequence, item.segment, Schedule::sliced_head(item)));
  }
}

/// Replaces every segment's sum by the R that it starts from, dS_T and the sums of the segments after it. One thread for
/// each value, as in `state_scan`.
template <class Config>
__global__ void __launch_bounds__(state_scan_tuning.threads)
    reverse_scan_sm90(const __grid_constant__ HopperBackwardCall<Config> call) {
  using Call = HopperBackwardCall<Config>;
  using Format = typename Call::SliceFormat;
  constexpr unsigned blocks = ceil_div(Format::head_values, state_scan_tuning.threads);
  const std::int64_t heads = call.query_heads * Call::slices;
  const std::int64_t head = blockIdx.x / blocks % heads;
  const std::int64_t b = blockIdx.x / blocks / heads;
  const int i = static_cast<int>(blockIdx.x % blocks * state_scan_tuning.threads + threadIdx.x);
  const PrefillPlan plan = call.plan_of(b);
  let_next_kernel_start();
  await_previous_kernel();
  if (plan.skipped || plan.token_segments == 1 || i >= Format::head_values) {
    return;
  }
  float running = 0;
  if (const auto gradient = call.final_gradient(b, head); gradient.state != nullptr) {
    if (i >= Format::normaliser_offset) {
      running = gradient.with_normaliser ? gradient.normaliser(i - Format::normaliser_offset) : 0.0F;
    } else if (gradient.has(i % Format::columns)) {
      running = *gradient.at(i / Format::columns, i % Format::columns);
    }
  }
  const std::int64_t stride = heads * Call::slice_elements;
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

/// Gradients of the initial states: R of all tokens, summed over the query heads of a key head in their order, r also over
/// slices.
template <class Config>
__global__ void __launch_bounds__(state_scan_tuning.threads)
    initial_gradients_sm90(const __grid_constant__ HopperBackwardCall<Config> call) {
  using Call = HopperBackwardCall<Config>;
  using Format = typename Call::GradientFormat;
  using SliceFormat = typename Call::SliceFormat;
  constexpr unsigned blocks = ceil_div(static_cast<int>(Format::head_values), state_scan_tuning.threads);
  const std::int64_t head = blockIdx.x / blocks % call.heads;
  const std::int64_t b = blockIdx.x / blocks / call.heads;
  const int i = static_cast<int>(blockIdx.x % blocks * state_scan_tuning.threads + threadIdx.x);
  await_previous_kernel();
  if (i >= Format::head_values || !call.initial_state_gradient.has_slot(b)) {
    return;
  }
  float sum = 0;
  if (!call.plan_of(b).skipped) {
    const bool normaliser = i >= Format::normaliser_offset;
    const int row = normaliser ? i - static_cast<int>(Format::normaliser_offset) : i / Format::columns;
    const int column = normaliser ? 0 : i % Format::columns;
    const int own =
        normaliser ? SliceFormat::normaliser_offset + row : row * SliceFormat::columns + column % SliceFormat::columns;
    const int first = normaliser ? 0 : column / SliceFormat::columns;
    const int end = normaliser ? Call::slices : first + 1;
    for (std::int64_t g = 0; g < call.group; ++g) {
      for (int slice = first; slice < end; ++slice) {
        sum += call.reverse_total(b, (head * call.group + g) * Call::slices + slice)[own];
      }
    }
  }
  call.initial_state_gradient.pool.head(call.initial_state_gradient.slot(b), head)[i] = sum;
}

/// Rows [first, first + count) of one head of `to`, each the sum of the same rows of as many heads of `from` as there are
/// for each of `to`, in their order.
template <class Element>
__device__ void sum_rows(const TensorView<Element>& from, const TensorView<Element>& to, std::int64_t row,
                         std::int64_t first, int count, std::int64_t head) {
  const std::int64_t terms = from.heads / to.heads;
  const int vectors = static_cast<int>(to.dim) / 8;
  for (int i = static_cast<int>(threadIdx.x); i < count * vectors; i += static_cast<int>(blockDim.x)) {
    const std::int64_t token = first + i / vectors;
    const int column = i % vectors * 8;
    float sums[8] = {};
    for (std::int64_t g = 0; g < terms; ++g) {
      const auto own = load_vector<8>(from.row(row, token, head * terms + g) + column);
      for (int c = 0; c < 8; ++c) {
        sums[c] += convert<float>(own[c]);
      }
    }
    Vector<Element, 8> rounded;
    for (int c = 0; c < 8; ++c) {
      rounded[c] = convert<Element>(sums[c]);
    }
    store_vector(to.row(row, token, head) + column, rounded);
  }
}

/// Adds up the terms of a gradient of tokens: those of query heads that share a key head, and of slices of v. A block takes
/// 64 rows of one head.
template <class Config>
__global__ void __launch_bounds__(128)
    sum_gradients_sm90(const __grid_constant__ HopperBackwardCall<Config> call,
                       const TensorView<typename Config::Element> from, const TensorView<typename Config::Element> to) {
  constexpr int rows = BackwardTiles<Config>::chunk;
  const RowRun run(call.args.sequences, call.args.query.tokens, blockIdx.x / to.heads, rows);
  const SequenceSpan span =
      within_views(sequence_span(call.args.sequences, run.b, call.args.query.tokens, call.args.key_encoder.tokens),
                   call.args.query.tokens, call.args.key_encoder.tokens);
  await_previous_kernel();
  if (run.within(span)) {
    sum_rows(from, to, span.batch_row, span.first_token + run.first_row,
             static_cast<int>(smaller<std::int64_t>(rows, span.row_tokens - run.first_row)), blockIdx.x % to.heads);
  }
}

/// The same for a gradient of the encoder region, of which a block takes every `parts`-th 64 rows.
template <class Config>
__global__ void __launch_bounds__(128) sum_encoder_gradients_sm90(const __grid_constant__ HopperBackwardCall<Config> call,
                                                                  const TensorView<typename Config::Element> from,
                                                                  const TensorView<typename Config::Element> to) {
  constexpr int rows = BackwardTiles<Config>::chunk;
  const BlockItem item(blockIdx.x, call.encoder_parts, to.heads, 1);
  const SequenceSpan span = call.plan_of(item.sequence).span;
  await_previous_kernel();
  for (std::int64_t first = item.segment * rows; first < span.encoder_tokens;
       first += std::int64_t{call.encoder_parts} * rows) {
    sum_rows(from, to, span.encoder_row, span.encoder_first + first,
             static_cast<int>(smaller<std::int64_t>(rows, span.encoder_tokens - first)), item.head);
  }
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
