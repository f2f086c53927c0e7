// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/numbers.cuh"
#include "jrt/detail/cuda/core/sm90/target.cuh"
#include "jrt/detail/cuda/linear/prefill_call.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_layout.cuh"
#include "jrt/detail/cuda/linear/sm90/schedule.cuh"
#include "jrt/detail/plan/prefill_plan.hpp"
#include "jrt/mixer/linear_attention.hpp"

/// The parameters of the backward kernels for sm_90a. A block of a pass has one slice of v of one *query* head of one
/// segment of a sequence. Gradients of q and k are sums over slices, and those of k and v over the query heads that share a
/// key head: where there are several, each goes to the workspace, and they are added up afterwards. A "sliced head" is a
/// slice of a head, with its slices as neighbours.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Tensor maps of one call.
struct HopperBackwardMaps {
  CUtensorMap query, key, value, key_encoder, value_encoder, output_gradient, value_gradient, value_encoder_gradient;
};

template <class Config>
struct HopperBackwardCall {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;
  using GradientFormat = StateGradientFormatOf<Config>;
  using SliceFormat = GradientSliceFormat<Config>;
  using Tiles = BackwardTiles<Config>;
  static constexpr int slices = Tiles::slices;
  /// Size of one partial state, as in PrefillCall, and of one R.
  static constexpr std::int64_t partial_elements = round_up<std::int64_t>(Format::head_values, 16);
  static constexpr std::int64_t slice_elements = round_up<std::int64_t>(SliceFormat::head_values, 16);

  PrefillArgs<Config> args;  // of the prefill, without its output and final state
  TensorView<const float> denominators;
  TensorView<const Element> output;           // with `output_gradient` and `output_products`, if c comes of them
  TensorView<const Element> output_gradient;  //
  TensorView<float> output_products;          // dy·y of every query
  // In the workspace where they are terms of sums:
  TensorView<Element> query_gradient;  // for every sliced query head, like the next
  TensorView<Element> key_gradient;
  TensorView<Element> value_gradient;        // for every query head
  TensorView<Element> key_encoder_gradient;  // for every sliced key head
  TensorView<Element> value_encoder_gradient;
  StateSlots<GradientFormat> final_state_gradient;
  StateSlots<GradientFormat> initial_state_gradient;
  HopperBackwardMaps maps;

  SplitLimits limits;
  std::int64_t sequences = 0;
  std::int64_t heads = 0;        // key/value heads
  std::int64_t query_heads = 0;  // group of them for each
  std::int64_t group = 1;
  std::int64_t record_chunks = 0;   // of one head
  std::byte* records = nullptr;     // [sliced query heads][record_chunks] TokenRecords
  const float* starts = nullptr;    // of segments in pass `queries`: PrefillCall's partial states, after their scan
  float* reverse_sums = nullptr;    // [sequences][max_token_segments][sliced query heads]; after the scan, R that segments
                                    // start from
  float* reverse_totals = nullptr;  // [sequences][sliced query heads] R of all tokens
  int encoder_parts = 1;            // blocks that share the encoder region of a head

  [[nodiscard]] __device__ PrefillPlan plan_of(std::int64_t b) const {
    const bool skipped = sequence_skipped(args.initial_state, args.has_initial_state, final_state_gradient, b) ||
                         (!initial_state_gradient.empty() && !initial_state_gradient.has_slot(b));
    return plan_sequence(args, limits, b, args.query.tokens, skipped, [](const TokenRange& tokens) { return tokens; });
  }

  [[nodiscard]] __host__ __device__ bool may_split() const {
    return limits.max_encoder_segments > 1 || limits.max_token_segments > 1;
  }
  [[nodiscard]] __device__ StateSlice<Format, const float> start(const PrefillPlan& plan, const BlockItem& item) const {
    const std::int64_t items = limits.max_encoder_segments + limits.max_token_segments;
    const std::int64_t before = plan.sequence * items + plan.encoder_segments + item.segment;
    return {starts + (before * heads + item.head / group) * partial_elements, item.slice * Tiles::columns};
  }
  [[nodiscard]] __device__ float* reverse_sum(std::int64_t b, std::int64_t segment, std::int64_t sliced_head) const {
    return reverse_sums + ((b * limits.max_token_segments + segment) * query_heads * slices + sliced_head) * slice_elements;
  }
  [[nodiscard]] __device__ float* reverse_total(std::int64_t b, std::int64_t sliced_head) const {
    return reverse_totals + (b * query_heads * slices + sliced_head) * slice_elements;
  }
  /// S_0 of a sequence, if it has one.
  [[nodiscard]] __device__ StateSlice<Format, const typename Format::Scalar> initial_state(const BlockItem& item) const {
    const auto* const state = reads_initial_state(args.initial_state, args.has_initial_state, item.sequence)
                                  ? args.initial_state.pool.head(args.initial_state.slot(item.sequence), item.head / group)
                                  : nullptr;
    return {state, item.slice * Tiles::columns};
  }
  /// dS_T, if there is one. It is counted once for all query heads of a key head, and its r once for all slices.
  [[nodiscard]] __device__ StateSlice<GradientFormat, const float> final_gradient(std::int64_t b,
                                                                                  std::int64_t sliced_head) const {
    const std::int64_t head = sliced_head / slices;
    const auto slice = static_cast<int>(sliced_head % slices);
    const float* const state = final_state_gradient.empty() || head % group != 0
                                   ? nullptr
                                   : final_state_gradient.pool.head(final_state_gradient.slot(b), head / group);
    return {state, slice * Tiles::columns, slice == 0};
  }

  /// Records of the tokens of a sequence from its first chunk on: chunks of sequence b start at those of RowRun, so no
  /// scan over lengths is needed.
  [[nodiscard]] __device__ std::byte* records_of(const PrefillPlan& plan, std::int64_t sliced_head,
                                                 std::int64_t token) const {
    const std::int64_t first = args.sequences.cu_seqlens != nullptr
                                   ? plan.span.first_token / Tiles::chunk + plan.sequence
                                   : plan.sequence * ceil_div<std::int64_t>(args.query.tokens, Tiles::chunk);
    const std::int64_t chunk = first + (token - plan.tokens.begin) / Tiles::chunk;
    return records + (sliced_head * record_chunks + chunk) * TokenRecord::bytes;
  }
};

/// Zeroes rows [0, begin) and [end, rows) of one head from `first` on; a view that is left out has none.
template <class Element>
__device__ void zero_rows_outside(const TensorView<Element>& view, std::int64_t batch_row, std::int64_t first,
                                  const TokenRange& present, std::int64_t rows, std::int64_t head) {
  if (view.data == nullptr) {
    return;
  }
  const auto zero = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = threadIdx.x; i < (end - begin) * view.dim; i += blockDim.x) {
      view.row(batch_row, first + begin + i / view.dim, head)[i % view.dim] = Element{};
    }
  };
  zero(0, present.begin);
  zero(present.end, rows);
}

/// The block's chunks in the order in which it works on them, and the copies that load them: first those of the encoder
/// region, which are only summed (pass `queries` of a sequence that is not split), then its own, in pass `keys` from the
/// last to the first. Delayed keys are those so many tokens before; where there is no such token, the copy engine makes
/// them and their values zero, so that nothing comes of them: a zero key only adds to the constant feature of z, of which
/// no gradient depends.
template <class Config, BackwardPass pass>
struct BackwardSchedule {
  using Layout = BackwardLayout<Config, pass>;
  static constexpr int delay = static_cast<int>(key_delay<Config>);

  TokenRun encoder;
  TokenRun own;
  int head = 0;      // of queries
  int key_head = 0;  // of keys
  int slice = 0;     // of v
  std::byte* records = nullptr;

  __device__ BackwardSchedule(const HopperBackwardCall<Config>& call, const PrefillPlan& plan, const BlockItem& item,
                              const TokenRun& encoder_run, const TokenRange& own_tokens)
      : encoder(encoder_run.warp_uniform()),
        own(TokenRun(token_source(call.args, plan, item.head / call.group), own_tokens).warp_uniform()),
        head(warp_uniform(static_cast<int>(item.head))),
        key_head(warp_uniform(static_cast<int>(item.head / call.group))),
        slice(Layout::slices == 1 ? 0 : warp_uniform(item.slice)),
        records(call.records_of(plan, sliced_head(item), own_tokens.begin)) {
    own.first += delay;  // of the queries
  }

  static __device__ std::int64_t sliced_head(const BlockItem& item) { return item.head * Layout::slices + item.slice; }
  [[nodiscard]] __device__ int column() const { return slice * Layout::columns; }

  static __device__ int chunks_of(const TokenRun& run) { return (run.tokens + Layout::chunk - 1) / Layout::chunk; }
  [[nodiscard]] __device__ int encoder_chunks() const { return Layout::queries ? chunks_of(encoder) : 0; }
  [[nodiscard]] __device__ int own_chunks() const { return chunks_of(own); }

  /// Which chunk of the block's own tokens is its n-th.
  [[nodiscard]] __device__ int own_chunk(int n) const { return Layout::queries ? n : own_chunks() - 1 - n; }
  /// Tokens from that chunk on: at most 63 in the last one.
  [[nodiscard]] __device__ int tokens_from(int chunk) const { return own.tokens - chunk * Layout::chunk; }

  /// Issues the copies of the block's chunk i. Called by a whole warp, like all loads.
  __device__ void load(const HopperBackwardMaps& maps, int i) const {
    if (const int encoders = encoder_chunks(); i >= encoders) {
      load_own(maps, i, i - encoders);
      return;
    }
    const int stage = i % Layout::stages;
    const SharedAddress barrier = Layout::full + 8 * stage;
    const int token = encoder.first + i * Layout::chunk;
    barrier_expect(barrier, Layout::input_tile + Layout::value_tile);
    load_tile(Layout::inputs + stage * Layout::input_tile, &maps.key_encoder, {0, token, key_head, encoder.row}, barrier);
    load_tile(Layout::values + stage * Layout::value_tile, &maps.value_encoder, {column(), token, key_head, encoder.row},
              barrier);
  }
  /// The same for the n-th of its own.
  __device__ void load_own(const HopperBackwardMaps& maps, int i, int n) const {
    const int stage = i % Layout::stages;
    const SharedAddress barrier = Layout::full + 8 * stage;
    const SharedAddress input = Layout::inputs + stage * Layout::input_tile;
    const SharedAddress value = Layout::values + stage * Layout::value_tile;
    const SharedAddress row_input = Layout::row_inputs + stage * Layout::input_tile;
    const SharedAddress row_value = Layout::row_values + stage * Layout::value_tile;
    const int chunk = own_chunk(n);
    const int token = own.first + chunk * Layout::chunk;
    barrier_expect(barrier, 2 * Layout::input_tile + 2 * Layout::value_tile + (Layout::queries ? 0 : TokenRecord::bytes));
    load_tile(Layout::queries ? input : row_input, &maps.key, {0, token - delay, key_head, own.row}, barrier);
    load_tile(Layout::queries ? row_input : input, &maps.query, {0, token, head, own.row}, barrier);
    load_tile(Layout::queries ? value : row_value, &maps.value, {column(), token - delay, key_head, own.row}, barrier);
    load_tile(Layout::queries ? row_value : value, &maps.output_gradient, {column(), token, head, own.row}, barrier);
    if constexpr (!Layout::queries) {
      load_record(stage, chunk, barrier);
    }
  }
  /// The same with what enters the state alone.
  __device__ void load_summed(const HopperBackwardMaps& maps, int i) const {
    static_assert(!Layout::queries, "pass `queries` has the prefill's kernel for this");
    const int stage = i % Layout::stages;
    const SharedAddress barrier = Layout::full + 8 * stage;
    const int chunk = own_chunk(i);
    const int token = own.first + chunk * Layout::chunk;
    barrier_expect(barrier, Layout::input_tile + Layout::value_tile + TokenRecord::bytes);
    load_tile(Layout::inputs + stage * Layout::input_tile, &maps.query, {0, token, head, own.row}, barrier);
    load_tile(Layout::values + stage * Layout::value_tile, &maps.output_gradient, {column(), token, head, own.row},
              barrier);
    load_record(stage, chunk, barrier);
  }

 private:
  __device__ void load_record(int stage, int chunk, SharedAddress barrier) const {
    const SharedAddress to = Layout::records + stage * TokenRecord::bytes;
    const std::byte* const from = records + static_cast<std::int64_t>(chunk) * TokenRecord::bytes;
    asm volatile(
        "{\n"
        ".reg .pred one;\n"
        "elect.sync _|one, 0xffffffff;\n"
        "@one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n"
        "}\n"
        :
        : "r"(to), "l"(from), "n"(TokenRecord::bytes), "r"(barrier)
        : "memory");
  }
};

/// Initialises the barriers and the ones. Called by all threads.
template <class Config, BackwardPass pass>
__device__ void prepare_backward_memory() {
  using Layout = BackwardLayout<Config, pass>;
  if (shared_address(hopper_shared_memory) != Layout::base) {
    __trap();  // all addresses assume it
  }
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (Layout::queries) {
    constexpr Pair one = HopperNumbers<typename Config::Element>::power_of_two(0);
    const Pair ones[4] = {one, one, one, one};
    for (int i = thread; i < Layout::ones_tile / 16; i += static_cast<int>(blockDim.x)) {
      store_pairs(SharedNumbers::at(Layout::ones + 16 * i), ones);
    }
  }
  if (thread == 0) {
    for (int i = 0; i < Layout::stages; ++i) {
      barrier_init(Layout::full + 8 * i, 1);
      barrier_init(Layout::summed_free + 8 * i, 4);
    }
    for (int i = 0; i < 2; ++i) {
      barrier_init(Layout::state_full + 8 * i, 4);
      barrier_init(Layout::state_free + 8 * i, 4);
    }
    barrier_init(Layout::stored, 4);
    barrier_init_fence();
  }
  async_proxy_fence();
  __syncthreads();
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
