// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/cuda/launch.cuh"
#include "jrt/detail/cuda/mma_engine.cuh"
#include "jrt/detail/cuda/simt_engine.cuh"
#include "jrt/detail/key_source.hpp"
#include "jrt/detail/prefill_plan.hpp"
#include "jrt/workspace.hpp"

/// Prefill of a batch. A block works on one segment of one head of one sequence (and, where v is wide, on a slice of its
/// columns), with an engine that knows how. An unsplit sequence takes one kernel (where v is not sliced): initial state,
/// encoder sum, then chunk by chunk outputs and update. A split one takes three:
///
///     sum    every segment's own Σ φ(k)vᵀ: encoder segments first, then token segments (the last of those only if the mask
///            reads all tokens);
///     scan   initial state + encoder segments + the token segments before each: every token segment's sum is replaced by
///            the state that it starts from;
///     read   outputs from that state.
///
/// Every sum has a fixed order: no atomics, and the same bits from run to run.
namespace jrt::detail::cuda {

template <class Config>
using PrefillEngine = std::conditional_t<MmaEngine<Config>::supported, MmaEngine<Config>, SimtEngine<Config>>;

/// What the kernels of one call share.
template <class Config>
struct PrefillCall {
  using T = ConfigCompute<Config>;
  using Engine = PrefillEngine<Config>;
  using Format = StateFormatOf<Config>;

  PrefillArgs<Config> args;
  PrefillLayout layout;
  std::int64_t sequences = 0;
  std::int64_t heads = 0;       // key/value heads
  T* partial_states = nullptr;  // [sequences][most_items()][heads][Format::head_elements]
  std::byte* scratch = nullptr;

  static constexpr bool full = Config::Mask::reads_future;

  [[nodiscard]] __host__ __device__ std::int64_t most_items() const {
    return layout.most_encoder_segments + layout.most_token_segments;
  }

  /// Whether a sequence goes through partial states. Slices of v must: each needs z, and only one may write it, so that
  /// with an in-place state one slice could read what another has written.
  [[nodiscard]] __host__ __device__ static bool through_partials(const PrefillPlan& plan) {
    return plan.split() || Engine::slices > 1;
  }
  [[nodiscard]] __host__ __device__ bool needs_partials() const {
    return layout.most_encoder_segments > 1 || layout.most_token_segments > 1 || Engine::slices > 1;
  }

  [[nodiscard]] __device__ T* partial_state(std::int64_t b, std::int64_t item, std::int64_t head) const {
    return partial_states + ((b * most_items() + item) * heads + head) * Format::head_elements;
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

  [[nodiscard]] __device__ PrefillPlan plan_of(std::int64_t b) const { return plan_prefill(args, layout, b); }
};

/// Which segment, head and slice a block is for. Slices and heads vary fastest: in [B,T,H,d] tensors their rows are
/// neighbours in memory.
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

template <class Config>
__device__ PrefillEngine<Config> engine_of(const PrefillCall<Config>& call, std::byte* shared, const BlockItem& item) {
  using Engine = PrefillEngine<Config>;
  return Engine(call.args, shared, call.scratch + std::int64_t{blockIdx.x} * Engine::scratch_bytes, item.slice);
}

extern __shared__ __align__(16) std::byte prefill_shared_memory[];

template <class Config>
__global__ void __launch_bounds__(PrefillEngine<Config>::threads, PrefillEngine<Config>::blocks_per_multiprocessor)
    sum_segments(const __grid_constant__ PrefillCall<Config> call) {
  using Call = PrefillCall<Config>;
  const BlockItem item(blockIdx.x, call.most_items(), call.heads, Call::Engine::slices);
  const PrefillPlan plan = call.plan_of(item.sequence);
  const bool encoder = item.segment < plan.encoder_segments;
  const std::int64_t token_segment = item.segment - plan.encoder_segments;
  // The last token segment's own sum is nobody's starting state.
  const std::int64_t wanted = plan.token_segments - (Call::full ? 0 : 1);
  if (plan.skipped || !Call::through_partials(plan) || (!encoder && token_segment >= wanted)) {
    return;
  }
  auto engine = engine_of(call, prefill_shared_memory, item);
  engine.for_state([](std::int64_t, auto& number, bool) { number = 0; });
  if (encoder) {
    engine.accumulate(encoder_source(call.args, plan, item.head),
                      segment_of(plan.encoder, plan.encoder_segments, item.segment, call.layout.chunk));
  } else {
    engine.accumulate(token_source(call.args, plan, item.head),
                      segment_of(plan.tokens, plan.token_segments, token_segment, call.layout.chunk));
  }
  auto* const partial = call.partial_state(item.sequence, item.segment, item.head);
  engine.for_state([&](std::int64_t i, auto& number, bool written) {
    if (written) {
      partial[i] = number;
    }
  });
}

inline constexpr int scan_threads = 256;

/// One thread for each number of a state: neighbouring threads read neighbouring numbers, and segments are few, so that
/// this runs at memory speed with its sums in order.
template <class Config>
__global__ void __launch_bounds__(scan_threads) scan_segments(const __grid_constant__ PrefillCall<Config> call) {
  using Call = PrefillCall<Config>;
  using T = typename Call::T;
  using Format = typename Call::Format;
  constexpr std::int64_t blocks = ceil_div<std::int64_t>(Format::normaliser_offset + Format::rows, scan_threads);
  const std::int64_t head = blockIdx.x / blocks % call.heads;
  const std::int64_t b = blockIdx.x / blocks / call.heads;
  const std::int64_t i = blockIdx.x % blocks * scan_threads + threadIdx.x;
  const PrefillPlan plan = call.plan_of(b);
  if (plan.skipped || !Call::through_partials(plan) || i >= Format::normaliser_offset + Format::rows) {
    return;
  }
  const auto* const initial = call.initial_state(b, head);
  T running = initial != nullptr ? convert<T>(initial[i]) : T(0);
  const std::int64_t stride = call.heads * Format::head_elements;
  T* partial = call.partial_state(b, 0, head) + i;
#pragma unroll 4
  for (std::int64_t item = 0; item < plan.encoder_segments; ++item, partial += stride) {
    running += *partial;
  }
  if constexpr (Call::full) {
    for (std::int64_t item = 0; item < plan.token_segments; ++item, partial += stride) {
      running += *partial;
    }
    *(partial - stride) = running;
    if (auto* const state = call.final_state(b, head); state != nullptr) {
      state[i] = convert<typename Format::Scalar>(running);
    }
  } else {
#pragma unroll 4
    for (std::int64_t item = 0; item + 1 < plan.token_segments; ++item, partial += stride) {
      const T own_sum = *partial;
      *partial = running;
      running += own_sum;
    }
    *partial = running;
  }
}

/// Outputs of positions that are no tokens: left pads, what lies behind seq_lens, and all of a skipped sequence.
template <class Config>
__device__ void zero_outputs(const PrefillCall<Config>& call, const PrefillPlan& plan, std::int64_t head) {
  const std::int64_t group = call.args.query.heads / call.heads;
  const auto zero = [&](std::int64_t first, std::int64_t end) {
    const std::int64_t row_elements = group * Config::value_dim;
    for (std::int64_t i = threadIdx.x; i < (end - first) * row_elements; i += blockDim.x) {
      const std::int64_t token = plan.span.first_token + first + i / row_elements;
      const std::int64_t within = i % row_elements;
      call.args.output.row(plan.span.batch_row, token,
                           head * group + within / Config::value_dim)[within % Config::value_dim] =
          typename Config::Element{};
    }
  };
  zero(0, plan.skipped ? plan.span.row_tokens : plan.tokens.begin);
  zero(plan.skipped ? plan.span.row_tokens : plan.tokens.end, plan.span.row_tokens);
}

/// Brings a block's state to where its segment starts; false if there is nothing to do.
template <class Config>
__device__ bool start_segment(const PrefillCall<Config>& call, const BlockItem& item, PrefillEngine<Config>& engine) {
  using Call = PrefillCall<Config>;
  using T = typename Call::T;
  const PrefillPlan plan = call.plan_of(item.sequence);
  if (item.segment == 0 && item.slice == 0) {
    zero_outputs(call, plan, item.head);
  }
  if (plan.skipped || item.segment >= plan.token_segments) {
    return false;
  }
  if (Call::through_partials(plan)) {
    const std::int64_t start = plan.encoder_segments + (Call::full ? plan.token_segments - 1 : item.segment);
    const T* const partial = call.partial_state(item.sequence, start, item.head);
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

template <class Config>
__global__ void __launch_bounds__(PrefillEngine<Config>::threads, PrefillEngine<Config>::blocks_per_multiprocessor)
    read_segments(const __grid_constant__ PrefillCall<Config> call) {
  using Call = PrefillCall<Config>;
  using Scalar = typename Call::Format::Scalar;
  const BlockItem item(blockIdx.x, call.layout.most_token_segments, call.heads, Call::Engine::slices);
  auto engine = engine_of(call, prefill_shared_memory, item);
  if (!start_segment(call, item, engine)) {
    return;
  }
  const PrefillPlan plan = call.plan_of(item.sequence);
  if constexpr (has_queries<Config>) {
    engine.outputs(token_source(call.args, plan, item.head),
                   segment_of(plan.tokens, plan.token_segments, item.segment, call.layout.chunk));
  }
  Scalar* const state = call.final_state(item.sequence, item.head);
  // Of a whole that goes through partial states, the scan has written it.
  const bool writes_final_state = item.segment + 1 == plan.token_segments && !(Call::full && Call::through_partials(plan));
  if (writes_final_state && state != nullptr) {
    engine.for_state([&](std::int64_t i, auto& number, bool written) {
      if (written) {
        state[i] = convert<Scalar>(number);
      }
    });
  }
}

/// Sizes, slices the workspace, and launches.
template <class Config>
class Prefill {
 public:
  using Call = PrefillCall<Config>;
  using Engine = typename Call::Engine;
  using Split = typename Config::Split;

  Prefill(const PrefillArgs<Config>& args, std::int64_t sequences, std::int64_t heads, const Cuda& on) {
    call_.args = args;
    call_.sequences = sequences;
    call_.heads = heads;
    // As many blocks as the multiprocessors hold at a time.
    const std::int64_t workers = std::int64_t{on.multiprocessors()} * Engine::blocks_per_multiprocessor;
    PrefillLayout layout{sequences * heads, workers, Engine::chunk};
    const std::int64_t bound = args.sequences.max_tokens > 0 ? args.sequences.max_tokens : INT64_MAX;
    layout.most_token_segments = layout.template segments<Split>(smaller(bound, args.query.tokens));
    const std::int64_t encoder_tokens = Config::Mask::reads_encoder ? smaller(bound, args.key_encoder.tokens) : 0;
    layout.most_encoder_segments = encoder_tokens > 0 ? layout.template segments<Split>(encoder_tokens) : 0;
    call_.layout = layout;
  }

  void take(Arena& arena) {
    if (call_.needs_partials()) {
      call_.partial_states =
          arena.take<typename Call::T>(call_.sequences * call_.most_items() * call_.heads * Call::Format::head_elements);
    }
    call_.scratch = arena.take<std::byte>(larger(sum_blocks(), read_blocks()) * Engine::scratch_bytes);
  }

  Status run(const char* operation, const Cuda& on) const {
    Status status;
    if (call_.needs_partials()) {
      status = launch(operation, sum_segments<Config>, {sum_blocks(), Engine::threads, Engine::shared_bytes}, on, call_);
      constexpr std::int64_t numbers = Call::Format::normaliser_offset + Call::Format::rows;
      const std::int64_t blocks = call_.sequences * call_.heads * ceil_div<std::int64_t>(numbers, scan_threads);
      if (status.ok()) {
        status = launch(operation, scan_segments<Config>, {blocks, scan_threads, 0}, on, call_);
      }
    }
    return !status.ok() ? status
                        : launch(operation, read_segments<Config>, {read_blocks(), Engine::threads, Engine::shared_bytes},
                                 on, call_);
  }

 private:
  [[nodiscard]] std::int64_t sum_blocks() const {
    return call_.needs_partials() ? call_.sequences * call_.most_items() * call_.heads * Engine::slices : 0;
  }
  [[nodiscard]] std::int64_t read_blocks() const {
    return call_.sequences * call_.layout.most_token_segments * call_.heads * Engine::slices;
  }

  Call call_;
};

}  // namespace jrt::detail::cuda
