// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/linear/backward_call.cuh"
#include "jrt/detail/cuda/linear/simt_gradients.cuh"
#include "jrt/detail/plan/prefill_plan.hpp"
#include "jrt/detail/plan/segment.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/workspace.hpp"

/// The backward pass on every GPU from sm_80 on: the kernels of backward_call.cuh with SimtGradients.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

extern __shared__ __align__(16) std::byte gradient_shared_memory[];

/// The directions of a pass.
enum class Direction { forward, reverse };

/// Item, head and direction of a block. Directions, where both go at once, and heads vary fastest.
struct GradientItem {
  std::int64_t sequence = 0;
  std::int64_t item = 0;
  std::int64_t head = 0;
  Direction direction = Direction::forward;

  __device__ GradientItem(std::int64_t block, std::int64_t items, std::int64_t heads, const Directions& directions) {
    direction = directions.forward ? Direction::forward : Direction::reverse;
    if (directions.forward && directions.reverse) {
      direction = block % 2 == 0 ? Direction::forward : Direction::reverse;
      block /= 2;
    }
    head = block % heads;
    block /= heads;
    item = block % items;
    sequence = block / items;
  }
};

template <class Config>
__device__ SimtGradients<Config> gradients_of(const BackwardCall<Config>& call, std::byte* shared) {
  return {call.args, call.denominator_gradients, shared,
          call.scratch + std::int64_t{blockIdx.x} * SimtGradients<Config>::scratch_bytes};
}

template <class Config>
__global__ void __launch_bounds__(SimtGradients<Config>::threads, simt_gradient_tuning.blocks)
    gradient_sums(const __grid_constant__ BackwardCall<Config> call) {
  using T = typename BackwardCall<Config>::T;
  const GradientItem at(blockIdx.x, call.max_items(), call.heads, call.directions);
  const PrefillPlan plan = call.plan_of(at.sequence);
  const bool forward = at.direction == Direction::forward;
  const bool of_encoder = at.item < plan.encoder_segments;
  const bool wanted = forward ? call.goes_forward() : call.goes_back() && !of_encoder;
  if (plan.skipped || !plan.split() || at.item >= plan.items() || !wanted) {
    return;
  }
  auto gradients = gradients_of(call, gradient_shared_memory);
  gradients.for_state([](std::int64_t, T& number) { number = 0; });
  if (of_encoder) {
    gradients.add_keys(encoder_source(call.inputs, plan, at.head),
                       segment_of(plan.encoder, plan.encoder_segments, at.item, call.limits.chunk));
  } else {
    const TokenRange range =
        segment_of(plan.tokens, plan.token_segments, at.item - plan.encoder_segments, call.limits.chunk);
    if (forward) {
      gradients.add_keys(token_source(call.inputs, plan, at.head), with_key<Config>(plan, range));
    } else {
      gradients.add_queries(plan.span, range, at.head);
    }
  }
  T* const sum =
      forward ? call.forward_state(at.sequence, at.item, at.head) : call.reverse_state(at.sequence, at.item, at.head);
  gradients.for_state([&](std::int64_t i, T& number) { sum[i] = number; });
}

/// The passes of a sequence that is not split.
template <class Config>
__device__ void whole_pass(const BackwardCall<Config>& call, const PrefillPlan& plan, const GradientItem& at) {
  using T = typename BackwardCall<Config>::T;
  constexpr bool full = BackwardCall<Config>::full;
  auto gradients = gradients_of(call, gradient_shared_memory);
  const auto tokens = token_source(call.inputs, plan, at.head);
  const auto encoder = encoder_source(call.inputs, plan, at.head);
  if (at.direction == Direction::forward) {
    const auto* const initial = call.initial_state(at.sequence, at.head);
    gradients.for_state([&](std::int64_t i, T& number) { number = initial != nullptr ? convert<T>(initial[i]) : T(0); });
    gradients.add_keys(encoder, plan.encoder);
    if constexpr (full) {
      gradients.add_keys(tokens, plan.tokens);
    }
    gradients.query_pass(tokens, plan.tokens, with_key<Config>(plan, plan.tokens));
    return;
  }
  const T* const final = call.final_gradient(at.sequence, at.head);
  gradients.for_state([&](std::int64_t i, T& number) { number = final != nullptr ? final[i] : T(0); });
  const TokenRange keyed = with_key<Config>(plan, plan.tokens);
  if (full || !call.wants_tokens()) {
    gradients.add_queries(plan.span, keyed, at.head);
  }
  if (call.wants_tokens()) {
    gradients.key_pass(tokens, keyed, !full, {call.args.key_gradient, call.args.value_gradient});
  }
  if constexpr (key_delay<Config> != 0) {
    gradients.add_queries(plan.span, {plan.tokens.begin, keyed.begin}, at.head);
  }
  if (call.wants_encoder()) {
    gradients.key_pass(encoder, plan.encoder, false, {call.args.key_encoder_gradient, call.args.value_encoder_gradient});
  }
  if (T* const gradient = call.initial_gradient(at.sequence, at.head); gradient != nullptr) {
    gradients.for_state([&](std::int64_t i, T& number) { gradient[i] = number; });
  }
}

template <class Config>
__global__ void __launch_bounds__(SimtGradients<Config>::threads, simt_gradient_tuning.blocks)
    segment_gradients(const __grid_constant__ BackwardCall<Config> call) {
  using T = typename BackwardCall<Config>::T;
  constexpr bool full = BackwardCall<Config>::full;
  const GradientItem at(blockIdx.x, call.max_items(), call.heads, call.directions);
  const PrefillPlan plan = call.plan_of(at.sequence);
  const bool forward = at.direction == Direction::forward;
  if (at.item == 0 && forward) {
    zero_gradients(call, plan, at.head);
  }
  const bool wanted = forward ? call.goes_forward() : call.goes_back();
  if (plan.skipped || !wanted || at.item >= (plan.split() ? plan.items() : 1)) {
    return;
  }
  if (!plan.split()) {
    whole_pass(call, plan, at);
    return;
  }
  const bool of_encoder = at.item < plan.encoder_segments;
  if (of_encoder ? forward || !call.wants_encoder() : !forward && !call.wants_tokens()) {
    return;
  }
  auto gradients = gradients_of(call, gradient_shared_memory);
  const std::int64_t start = full || of_encoder ? call.max_items() : at.item;
  const T* const state =
      forward ? call.forward_state(at.sequence, start, at.head) : call.reverse_state(at.sequence, start, at.head);
  gradients.for_state([&](std::int64_t i, T& number) { number = state[i]; });
  if (of_encoder) {
    gradients.key_pass(encoder_source(call.inputs, plan, at.head),
                       segment_of(plan.encoder, plan.encoder_segments, at.item, call.limits.chunk), false,
                       {call.args.key_encoder_gradient, call.args.value_encoder_gradient});
    return;
  }
  const auto tokens = token_source(call.inputs, plan, at.head);
  const TokenRange range = segment_of(plan.tokens, plan.token_segments, at.item - plan.encoder_segments, call.limits.chunk);
  if (forward) {
    gradients.query_pass(tokens, range, with_key<Config>(plan, range));
  } else {
    gradients.key_pass(tokens, with_key<Config>(plan, range), !full, {call.args.key_gradient, call.args.value_gradient});
  }
}

/// Sizes, slices the workspace, and launches.
template <class Config>
class PortableBackward {
 public:
  using Call = BackwardCall<Config>;
  using Engine = SimtGradients<Config>;

  PortableBackward(const BackwardArgs<Config>& args, std::int64_t sequences, const Cuda& on) {
    call_.args = args;
    call_.inputs = inputs_of(args);
    call_.sequences = sequences;
    call_.heads = args.key.heads;
    // As many blocks as the multiprocessors hold at a time, half of them for each direction.
    const std::int64_t workers =
        larger<std::int64_t>(1, std::int64_t{on.multiprocessors()} * simt_gradient_tuning.blocks / 2);
    call_.limits = limits_of(call_.inputs, {sequences * call_.heads, workers, Engine::chunk});
  }

  void take(Arena& arena) {
    call_.take_states(arena);
    call_.scratch = arena.take<std::byte>(blocks() * Engine::scratch_bytes);
  }

  Status run(const char* operation, const Cuda& on) const {
    if constexpr (recomputes_output_products<Config>) {
      const Status status = run_passes(operation, on, {.reverse = false});
      return status.ok() && call_.wants_reverse() ? run_passes(operation, on, {.forward = false}) : status;
    } else {
      return run_passes(operation, on, {});
    }
  }

 private:
  Status run_passes(const char* operation, const Cuda& on, const Directions& directions) const {
    Call call = call_;
    call.directions = directions;
    const bool both = directions.forward && directions.reverse;
    const Grid grid{both ? blocks() : blocks() / 2, Engine::threads, Engine::shared_bytes};
    Status status;
    if (call.may_split()) {
      status = launch(operation, gradient_sums<Config>, grid, on, call);
      if (status.ok()) {
        constexpr std::int64_t numbers = Call::Format::normaliser_offset + Call::Format::rows;
        const std::int64_t scan_blocks =
            call.sequences * call.heads * ceil_div<std::int64_t>(numbers, state_scan_tuning.threads);
        status = launch(operation, gradient_scan<Call>, {scan_blocks, state_scan_tuning.threads, 0}, on, call);
      }
    }
    return status.ok() ? launch(operation, segment_gradients<Config>, grid, on, call) : status;
  }

  [[nodiscard]] std::int64_t blocks() const { return call_.sequences * call_.max_items() * call_.heads * 2; }

  Call call_;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
