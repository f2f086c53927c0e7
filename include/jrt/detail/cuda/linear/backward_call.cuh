// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/cuda/linear/prefill_call.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/backward_plan.hpp"
#include "jrt/detail/shared/linear/output_products.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/state.hpp"
#include "jrt/workspace.hpp"

/// The backward pass of a batch. A block makes one pass over one segment of one head of one sequence: forward in time, S
/// and the gradients of queries; or backward in time, R and the gradients of keys and values (and, where the sequence is
/// not split, those of the encoder region from the R that it ends with). A split sequence takes three kernels:
///
///     gradient_sums       every segment's own Σ φ(k)vᵀ (encoder segments too) and Σ φ(q)gᵀ;
///     gradient_scan       from the first segment on for S, from the last back for R: every sum is replaced by the state
///                         that its pass starts from; the whole R is kept, for the encoder region and the initial state;
///     segment_gradients   the passes.
///
/// Both directions go at once, or one after the other where the second needs what the first leaves of the outputs
/// (output_products.hpp).
///
/// Every sum has a fixed order: no atomics, and the same bits from run to run.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Parameters shared by the kernels of one call.
template <class ConfigT>
struct BackwardCall {
  using Config = ConfigT;
  using T = ConfigCompute<Config>;
  using Format = StateFormatOf<Config>;

  BackwardArgs<Config> args;
  PrefillArgs<Config> inputs;  // of `args`
  SplitLimits limits;
  std::int64_t sequences = 0;
  std::int64_t heads = 0;       // key/value heads
  T* forward_states = nullptr;  // [sequences][max_items() + 1][heads][state_elements]; the last is the whole sum
  T* reverse_states = nullptr;  // likewise
  std::byte* scratch = nullptr;
  Directions directions;                // of the kernels that run
  TensorView<T> denominator_gradients;  // where one direction goes after the other

  static constexpr bool full = Config::Mask::reads_future;
  static constexpr std::int64_t state_elements = round_up<std::int64_t>(Format::head_values, 16);

  [[nodiscard]] __host__ __device__ bool may_split() const {
    return limits.max_encoder_segments > 1 || limits.max_token_segments > 1;
  }
  /// Encoder segments, then token segments.
  [[nodiscard]] __host__ __device__ std::int64_t max_items() const {
    return may_split() ? limits.max_encoder_segments + limits.max_token_segments : 1;
  }
  [[nodiscard]] __host__ __device__ bool wants_tokens() const {
    return args.key_gradient.data != nullptr || args.value_gradient.data != nullptr;
  }
  [[nodiscard]] __host__ __device__ bool wants_encoder() const {
    return args.key_encoder_gradient.data != nullptr || args.value_encoder_gradient.data != nullptr;
  }
  /// Whether the forward direction has anything to do: gradients of queries, or what the other direction needs.
  [[nodiscard]] __host__ __device__ bool wants_forward() const {
    return args.query_gradient.data != nullptr || (recomputes_output_products<Config> && wants_reverse());
  }
  [[nodiscard]] __host__ __device__ bool goes_forward() const { return directions.forward && wants_forward(); }
  [[nodiscard]] __host__ __device__ bool goes_back() const { return directions.reverse && wants_reverse(); }
  /// Whether anything needs R.
  [[nodiscard]] __host__ __device__ bool wants_reverse() const {
    return wants_tokens() || wants_encoder() || !args.initial_state_gradient.empty();
  }

  [[nodiscard]] __device__ PrefillPlan plan_of(std::int64_t b) const { return plan_backward(args, inputs, limits, b); }

  [[nodiscard]] __device__ T* forward_state(std::int64_t b, std::int64_t item, std::int64_t head) const {
    return forward_states + ((b * (max_items() + 1) + item) * heads + head) * state_elements;
  }
  [[nodiscard]] __device__ T* reverse_state(std::int64_t b, std::int64_t item, std::int64_t head) const {
    return reverse_states + ((b * (max_items() + 1) + item) * heads + head) * state_elements;
  }

  /// S_0, if this sequence has one; null otherwise.
  [[nodiscard]] __device__ const typename Format::Scalar* initial_state(std::int64_t b, std::int64_t head) const {
    return reads_initial_state(args.initial_state, args.has_initial_state, b)
               ? args.initial_state.pool.head(args.initial_state.slot(b), head)
               : nullptr;
  }
  /// R after the last token, if anything reads the final state; null otherwise.
  [[nodiscard]] __device__ const T* final_gradient(std::int64_t b, std::int64_t head) const {
    return args.final_state_gradient.empty() ? nullptr
                                             : args.final_state_gradient.pool.head(args.final_state_gradient.slot(b), head);
  }
  [[nodiscard]] __device__ T* initial_gradient(std::int64_t b, std::int64_t head) const {
    return args.initial_state_gradient.empty()
               ? nullptr
               : args.initial_state_gradient.pool.head(args.initial_state_gradient.slot(b), head);
  }

  void take_states(Arena& arena) {
    if (may_split()) {
      const std::int64_t elements = sequences * (max_items() + 1) * heads * state_elements;
      forward_states = arena.take<T>(elements);
      reverse_states = arena.take<T>(elements);
    }
    denominator_gradients = denominator_gradients_of(args, arena.take<T>(denominator_gradients_size(args)));
  }
};

/// One thread for each value of a state.
template <class Call>
__global__ void __launch_bounds__(state_scan_tuning.threads) gradient_scan(const __grid_constant__ Call call) {
  using T = typename Call::T;
  constexpr int numbers = static_cast<int>(Call::Format::normaliser_offset) + Call::Format::rows;
  constexpr unsigned blocks = ceil_div(numbers, state_scan_tuning.threads);
  const unsigned head_of_all = blockIdx.x / blocks;
  const unsigned head = head_of_all % static_cast<unsigned>(call.heads);
  const unsigned b = head_of_all / static_cast<unsigned>(call.heads);
  const int i = static_cast<int>(blockIdx.x % blocks * state_scan_tuning.threads + threadIdx.x);
  const PrefillPlan plan = call.plan_of(b);
  if (plan.skipped || !plan.split() || i >= numbers) {
    return;
  }
  const std::int64_t stride = call.heads * Call::state_elements;
  const std::int64_t items = plan.items();
  if (call.goes_forward()) {
    const auto* const initial = call.initial_state(b, head);
    T running = initial != nullptr ? convert<T>(initial[i]) : T(0);
    T* const states = call.forward_state(b, 0, head) + i;
    for (std::int64_t item = 0; item < items; ++item) {
      const T own = states[item * stride];
      if (!Call::full && item >= plan.encoder_segments) {
        states[item * stride] = running;
      }
      running += own;
    }
    states[call.max_items() * stride] = running;
  }
  if (call.goes_back()) {
    const T* const final = call.final_gradient(b, head);
    T running = final != nullptr ? final[i] : T(0);
    T* const states = call.reverse_state(b, 0, head) + i;
    for (std::int64_t item = items - 1; item >= plan.encoder_segments; --item) {
      const T own = states[item * stride];
      if (!Call::full) {
        states[item * stride] = running;
      }
      running += own;
    }
    states[call.max_items() * stride] = running;
    if (T* const gradient = call.initial_gradient(b, head); gradient != nullptr) {
      gradient[i] = running;
    }
  }
}

/// Zeroes the gradients of positions without a token: left pads, positions past seq_lens or the prefix, and all of a
/// skipped sequence.
template <class Call>
__device__ void zero_gradients(const Call& call, const PrefillPlan& plan, std::int64_t head) {
  using Element = typename Call::Config::Element;
  const auto zero = [](const TensorView<Element>& view, std::int64_t row, std::int64_t offset, std::int64_t first_head,
                       std::int64_t heads, const TokenRange& kept, std::int64_t end) {
    if (view.data == nullptr) {
      return;
    }
    const std::int64_t width = heads * view.dim;
    const std::int64_t before = kept.begin * width;
    const std::int64_t count = before + (end - kept.end) * width;
    for (std::int64_t i = threadIdx.x; i < count; i += blockDim.x) {
      const std::int64_t token = i < before ? i / width : kept.end + (i - before) / width;
      const std::int64_t within = (i < before ? i : i - before) % width;
      view.row(row, offset + token, first_head + within / view.dim)[within % view.dim] = Element{};
    }
  };
  const SequenceSpan& span = plan.span;
  const TokenRange tokens = plan.skipped ? TokenRange{} : plan.tokens;
  const TokenRange keys = plan.skipped ? TokenRange{} : keys_with_gradient<typename Call::Config>(plan);
  const TokenRange encoder = plan.skipped ? TokenRange{} : plan.encoder;
  const std::int64_t group = call.args.query.heads / call.heads;
  zero(call.args.query_gradient, span.batch_row, span.first_token, head * group, group, tokens, span.row_tokens);
  zero(call.args.key_gradient, span.batch_row, span.first_token, head, 1, keys, span.row_tokens);
  zero(call.args.value_gradient, span.batch_row, span.first_token, head, 1, keys, span.row_tokens);
  zero(call.args.key_encoder_gradient, span.encoder_row, span.encoder_first, head, 1, encoder, span.encoder_tokens);
  zero(call.args.value_encoder_gradient, span.encoder_row, span.encoder_first, head, 1, encoder, span.encoder_tokens);
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
