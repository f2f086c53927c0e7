// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/prefill_plan.hpp"
#include "jrt/detail/shared/linear/denominators.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/workspace.hpp"

/// Prefill of a batch. A block works on one segment of one head of one sequence (and, where v is wide, on a slice of its
/// columns). An unsplit sequence takes one kernel: initial state, encoder sum, then chunk by chunk outputs and update. A
/// split one takes three:
///
///     segment sums      every segment's own Σ φ(k)vᵀ: encoder segments first, then token segments (the last of those only
///                       if the mask reads all tokens);
///     state scan        initial state + encoder segments + the token segments before each: every token segment's sum is
///                       replaced by the state that it starts from;
///     segment outputs   outputs from that state.
///
/// Every sum has a fixed order: no atomics, and the same bits from run to run.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Segment, head and slice of a block. Slices and heads vary fastest: in [B,T,H,d] tensors their rows are neighbours in
/// memory.
struct BlockItem {
  std::int64_t sequence = 0;
  std::int64_t segment = 0;
  std::int64_t head = 0;
  int slice = 0;

  __device__ BlockItem(std::int64_t block, std::int64_t segments, std::int64_t heads, int slices) {
    slice = static_cast<int>(block % slices);
    block /= slices;
    head = block % heads;
    block /= heads;
    segment = block % segments;
    sequence = block / segments;
  }
};

/// Parameters shared by the kernels of one call. `EngineT` processes a segment; used here are its `slices`, and whether
/// they need partial states.
template <class ConfigT, class EngineT>
struct PrefillCall {
  using Config = ConfigT;
  using Engine = EngineT;
  using T = ConfigCompute<Config>;
  using Format = StateFormatOf<Config>;

  PrefillInputOf<Config> args;
  SplitLimits limits;
  std::int64_t sequences = 0;
  std::int64_t heads = 0;       // key/value heads
  T* partial_states = nullptr;  // [sequences][max_items()][heads][partial_elements]
  std::byte* scratch = nullptr;

  static constexpr bool full = Config::Mask::reads_future;
  /// Size of one partial state; heads of a pool may be further apart.
  static constexpr std::int64_t partial_elements = round_up<std::int64_t>(Format::head_values, 16);

  [[nodiscard]] __host__ __device__ std::int64_t max_items() const {
    return limits.max_encoder_segments + limits.max_token_segments;
  }

  /// Whether a sequence goes through partial states. Slices of v may have to: each reads z and one writes it, so with an
  /// in-place state one slice could read what another has written.
  [[nodiscard]] __host__ __device__ static bool through_partials(const PrefillPlan& plan) {
    return plan.split() || Engine::slices_need_partials;
  }
  [[nodiscard]] __host__ __device__ bool needs_partials() const {
    return limits.max_encoder_segments > 1 || limits.max_token_segments > 1 || Engine::slices_need_partials;
  }

  [[nodiscard]] __device__ T* partial_state(std::int64_t b, std::int64_t item, std::int64_t head) const {
    return partial_states + ((b * max_items() + item) * heads + head) * partial_elements;
  }

  /// S_0, if this sequence has one; null otherwise.
  [[nodiscard]] __device__ const typename Format::Scalar* initial_state(std::int64_t b, std::int64_t head) const {
    return reads_initial_state(args.initial_state, args.has_initial_state, b)
               ? args.initial_state.pool.head(args.initial_state.slot(b), head)
               : nullptr;
  }
  [[nodiscard]] __device__ typename Format::Scalar* final_state(std::int64_t b, std::int64_t head) const {
    return args.final_state.empty() ? nullptr : args.final_state.pool.head(args.final_state.slot(b), head);
  }

  [[nodiscard]] __device__ PrefillPlan plan_of(std::int64_t b) const { return plan_prefill(args, limits, b); }

  /// Whether a block's item is to be summed: no segment starts from the last token segment's own sum.
  [[nodiscard]] static __device__ bool sums(const PrefillPlan& plan, const BlockItem& item) {
    return !plan.skipped && through_partials(plan) &&
           item.segment < plan.encoder_segments + plan.token_segments - (full ? 0 : 1);
  }
  /// The state that a token segment starts from, valid after the scan.
  [[nodiscard]] __device__ T* starting_state(const PrefillPlan& plan, const BlockItem& item) const {
    const std::int64_t start = plan.encoder_segments + (full ? plan.token_segments - 1 : item.segment);
    return partial_state(item.sequence, start, item.head);
  }
  /// Where the state after a token segment is written; null if it is not. With a full mask and partial states, the scan has
  /// written it.
  [[nodiscard]] __device__ typename Format::Scalar* final_destination(const PrefillPlan& plan,
                                                                      const BlockItem& item) const {
    const bool writes = item.segment + 1 == plan.token_segments && !(full && through_partials(plan));
    return writes ? final_state(item.sequence, item.head) : nullptr;
  }

  void take_partial_states(Arena& arena) {
    if (needs_partials()) {
      partial_states = arena.take<T>(sequences * max_items() * heads * partial_elements);
    }
  }
};

/// The most tokens that a sequence of the call may have, as far as the host knows, and the most of its encoder region.
template <class Config>
std::int64_t most_tokens(const PrefillArgs<Config>& args) {
  return args.sequences.max_tokens > 0 ? smaller(args.sequences.max_tokens, args.query.tokens) : args.query.tokens;
}
template <class Config>
std::int64_t most_encoder_tokens(const PrefillArgs<Config>& args) {
  if (!Config::Mask::reads_encoder) {
    return 0;
  }
  return args.sequences.max_tokens > 0 ? smaller(args.sequences.max_tokens, args.key_encoder.tokens)
                                       : args.key_encoder.tokens;
}

/// With the most segments that any sequence of the call may have: the workspace is sized before lengths are known.
template <class Config>
SplitLimits limits_of(const PrefillArgs<Config>& args, SplitLimits limits) {
  using Split = typename Config::Split;
  const std::int64_t tokens = most_tokens(args);
  const std::int64_t encoder_tokens = most_encoder_tokens(args);
  limits.max_encoder_segments = limits.template encoder_segments<Split>(encoder_tokens, tokens);
  limits.max_token_segments = limits.template token_segments<Split>(tokens);
  return limits;
}

/// One thread for each value of a state: neighbouring threads read neighbouring values. Each has several loads in flight at
/// a time and adds the values in order.
template <class Call>
__global__ void __launch_bounds__(state_scan_tuning.threads) state_scan(const __grid_constant__ Call call) {
  using T = typename Call::T;
  using Format = typename Call::Format;
  constexpr int numbers = static_cast<int>(Format::normaliser_offset) + Format::rows;
  constexpr unsigned blocks = ceil_div(numbers, state_scan_tuning.threads);
  const unsigned head_of_all = blockIdx.x / blocks;
  const unsigned head = head_of_all % static_cast<unsigned>(call.heads);
  const unsigned b = head_of_all / static_cast<unsigned>(call.heads);
  const int i = static_cast<int>(blockIdx.x % blocks * state_scan_tuning.threads + threadIdx.x);
  const PrefillPlan plan = call.plan_of(b);
  let_next_kernel_start();
  await_previous_kernel();
  if (plan.skipped || !Call::through_partials(plan) || i >= numbers) {
    return;
  }
  const auto* const initial = call.initial_state(b, head);
  T running = initial != nullptr ? convert<T>(initial[i]) : T(0);
  const std::int64_t stride = call.heads * Call::partial_elements;
  T* const partial = call.partial_state(b, 0, head) + i;
  const auto encoder = static_cast<int>(plan.encoder_segments);
  const auto items = static_cast<int>(plan.encoder_segments + plan.token_segments);
  // The sum of the last token segment exists only if all are to be added up.
  const int sums = items - (Call::full ? 0 : 1);
  constexpr int at_a_time = state_scan_tuning.loads_in_flight;
  for (int first = 0; first < items; first += at_a_time) {
    T own[at_a_time];
#pragma unroll
    for (int j = 0; j < at_a_time; ++j) {
      own[j] = first + j < sums ? partial[(first + j) * stride] : T(0);
    }
#pragma unroll
    for (int j = 0; j < at_a_time; ++j) {
      if (!Call::full && first + j >= encoder && first + j < items) {
        partial[(first + j) * stride] = running;
      }
      running += own[j];
    }
  }
  if constexpr (Call::full) {
    partial[(items - 1) * stride] = running;
    if (auto* const state = call.final_state(b, head); state != nullptr) {
      state[i] = convert<typename Format::Scalar>(running);
    }
  }
}

template <class Call>
Grid scan_grid(const Call& call, bool starts_early) {
  constexpr std::int64_t numbers = Call::Format::normaliser_offset + Call::Format::rows;
  return {call.sequences * call.heads * ceil_div<std::int64_t>(numbers, state_scan_tuning.threads),
          state_scan_tuning.threads, 0, starts_early};
}

/// Zeroes the outputs of positions without a token: left pads, positions past seq_lens, and all of a skipped sequence.
template <class Call>
__device__ void zero_outputs(const Call& call, const PrefillPlan& plan, std::int64_t head) {
  using Config = typename Call::Config;
  if constexpr (is_linear_part<Config>) {
    return;  // the window pass zeroes these, after reading its carry-in
  }
  const std::int64_t group = call.args.query.heads / call.heads;
  const auto zero = [&](std::int64_t first, std::int64_t end) {
    const std::int64_t row_elements = group * Config::value_dim;
    for (std::int64_t i = threadIdx.x; i < (end - first) * row_elements; i += blockDim.x) {
      const std::int64_t token = plan.span.first_token + first + i / row_elements;
      const std::int64_t within = i % row_elements;
      const std::int64_t query_head = head * group + within / Config::value_dim;
      const std::int64_t column = within % Config::value_dim;
      call.args.output.row(plan.span.batch_row, token, query_head)[column] = typename Config::Element{};
      if (has_denominators<Config> && column == 0) {
        store_denominator(call.args.denominators, plan.span.batch_row, token, query_head, typename Call::T(0));
      }
    }
  };
  zero(0, plan.skipped ? plan.span.row_tokens : plan.tokens.begin);
  zero(plan.skipped ? plan.span.row_tokens : plan.tokens.end, plan.span.row_tokens);
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
