// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/sm90/target.cuh"
#include "jrt/detail/cuda/core/sm90/tensor_map.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_call.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_encoder.cuh"
#include "jrt/detail/cuda/linear/sm90/backward_kernels.cuh"
#include "jrt/detail/cuda/linear/sm90/prefill.cuh"
#include "jrt/detail/plan/backward_plan.hpp"
#include "jrt/detail/plan/sequence_runs.hpp"
#include "jrt/workspace.hpp"

/// Backward on Hopper GPUs. docs/hopper-backward-kernel.md explains the kernels with pictures. Two passes over the tokens,
/// since states are recomputed, not stored:
///
///     pass queries   tokens in order, S as in the prefill     q k v dy den (k_enc v_enc)   →  dq, token records
///     pass keys      tokens in reverse, R                     q k v dy records              →  dk, dv, R of all tokens
///     encoder        that R                                   k_enc v_enc                   →  dk_enc, dv_enc
///
/// That R is also the gradient of the initial state. A split sequence has segment sums and a scan before either pass: the
/// prefill's before the first.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Whether the backward pass of an operator has kernels for sm_90a in this translation unit. Served: bfloat16 elements,
/// Taylor2<16> in symmetric packing, dv a multiple of 8 (in slices of 64), prefix and causal masks, any differentiable
/// normaliser, DropPadding, any split, delayed keys; and of what is known at run time, all that `HopperBackward::serves`
/// admits: dense, packed and padded sequences (delayed keys: not these two), prefixes, states, grouped heads, any subset of
/// gradients.
template <class Config>
inline constexpr bool has_hopper_backward = targets_hopper&& BackwardTiles<Config>::supported;

/// Placeholder where there are none.
template <class Config>
struct NoHopperBackward {
  static bool available(const Cuda& /*on*/) { return false; }
  static bool serves(const BackwardArgs<Config>& /*args*/) { return false; }
  NoHopperBackward(const BackwardArgs<Config>&, std::int64_t, std::int64_t, const Cuda&) {}
  static void take(Arena& /*arena*/) {}
  static Status run(const char* /*operation*/, const Cuda& /*on*/) { return {}; }
};

/// Sizes, slices the workspace, describes the tensors, and launches.
template <class Config>
class HopperBackward {
 public:
  using Call = HopperBackwardCall<Config>;
  using Tiles = BackwardTiles<Config>;
  using Element = typename Config::Element;

  /// Whether the kernels exist on this device.
  static bool available(const Cuda& on) {
    if (on.compute_capability() != 90 || on.reserved_shared_bytes() != static_cast<int>(Tiles::base)) {
      return false;
    }
    return kernel_exists<segment_gradients_sm90<Config, BackwardPass::keys>, Tiles::threads>() &&
           tensor_map_encoder() != nullptr;
  }

  /// Whether the copy engine and 16-byte accesses can reach all tensors of a call, by the views alone: rows start at
  /// multiples of 16 bytes, strides are positive.
  static bool serves(const BackwardArgs<Config>& args) {
    if (key_delay<Config> != 0 && (args.sequences.cu_seqlens != nullptr || args.sequences.left_pads != nullptr)) {
      return false;  // the keys before a sequence's first are not zeros
    }
    if (Tiles::given_products && !reachable(args.output)) {
      return false;
    }
    return reachable(args.query) && reachable(args.key) && reachable(args.value) && reachable(args.key_encoder) &&
           reachable(args.value_encoder) && reachable(args.output_gradient) && reachable(args.query_gradient) &&
           reachable(args.key_gradient) && reachable(args.value_gradient) && reachable(args.key_encoder_gradient) &&
           reachable(args.value_encoder_gradient);
  }

  /// `heads`: key/value heads.
  HopperBackward(const BackwardArgs<Config>& args, std::int64_t sequences, std::int64_t heads, const Cuda& on)
      : query_gradient_(args.query_gradient),
        key_gradient_(args.key_gradient),
        value_gradient_(args.value_gradient),
        key_encoder_gradient_(args.key_encoder_gradient) {
    call_.args = inputs_of(args);
    call_.denominators = args.denominators;
    call_.output = args.output;
    call_.output_gradient = args.output_gradient;
    call_.query_gradient = args.query_gradient;
    call_.key_gradient = args.key_gradient;
    call_.value_gradient = args.value_gradient;
    call_.key_encoder_gradient = args.key_encoder_gradient;
    call_.value_encoder_gradient = args.value_encoder_gradient;
    call_.final_state_gradient = args.final_state_gradient;
    call_.initial_state_gradient = args.initial_state_gradient;
    call_.sequences = sequences;
    call_.heads = heads;
    call_.query_heads = args.query.heads;
    call_.group = args.query.heads / larger<std::int64_t>(heads, 1);
    call_.record_chunks = row_runs(args.sequences, args.query.batch, args.query.tokens, Tiles::chunk);
    const auto& tuning = hopper_tuning<Element>;
    SplitLimits limits{sequences * args.query.heads * Tiles::slices,
                       std::int64_t{on.multiprocessors()} * hopper_backward_tuning.blocks, Tiles::chunk};
    limits.min_segments = tuning.min_segments;
    limits.tokens_per_worker = tuning.tokens_per_worker;
    call_.limits = limits_of(call_.args, limits);
    const std::int64_t bound = args.sequences.max_tokens > 0 ? args.sequences.max_tokens : args.key_encoder.tokens;
    const std::int64_t chunks = ceil_div<std::int64_t>(smaller(bound, args.key_encoder.tokens), Tiles::chunk);
    call_.encoder_parts = static_cast<int>(
        clamped(larger(ceil_div<std::int64_t>(chunks, hopper_backward_tuning.encoder_chunks),
                       ceil_div<std::int64_t>(limits.workers, larger<std::int64_t>(sequences * heads * Tiles::slices, 1))),
                1, larger<std::int64_t>(ceil_div<std::int64_t>(chunks, 2), 1)));
  }

  void take(Arena& arena) {
    const std::int64_t items = call_.sequences * (call_.limits.max_encoder_segments + call_.limits.max_token_segments);
    const std::int64_t sliced_heads = call_.query_heads * Tiles::slices;
    const auto take_terms = [&](TensorView<Element>& view, std::int64_t heads) {
      if (!is_empty(view) && heads > view.heads) {
        const TensorShape shape{view.batch, view.tokens, heads, view.dim};
        view = view_bhtd(arena.take<Element>(shape.batch * shape.tokens * shape.heads * shape.dim), shape);
      }
    };
    if constexpr (Tiles::given_products) {
      const auto& output = call_.output;
      call_.output_products = view_bthd(arena.take<float>(output.batch * output.tokens * output.heads),
                                        {output.batch, output.tokens, output.heads, 1});
    }
    call_.records = arena.take<std::byte>(sliced_heads * call_.record_chunks * TokenRecord::bytes);
    if (call_.may_split()) {
      starts_ = arena.take<float>(items * call_.heads * Call::partial_elements);
      call_.starts = starts_;
    }
    take_terms(call_.query_gradient, sliced_heads);
    if (!keys_wanted()) {
      return;
    }
    if (call_.limits.max_token_segments > 1) {
      call_.reverse_sums =
          arena.take<float>(call_.sequences * call_.limits.max_token_segments * sliced_heads * Call::slice_elements);
    }
    call_.reverse_totals = arena.take<float>(call_.sequences * sliced_heads * Call::slice_elements);
    take_terms(call_.key_gradient, sliced_heads);
    take_terms(call_.value_gradient, call_.query_heads);
    take_terms(call_.key_encoder_gradient, call_.heads * Tiles::slices);
  }

  Status run(const char* operation, const Cuda& on) const {
    Call call = call_;
    HopperCall<Config> sums = prefill_call();
    if (!describe_tensors(call.maps, sums.maps)) {
      return Status::error(StatusCode::device_error, "%s: the driver cannot describe a tensor to the copy engine.",
                           operation);
    }
    Status status;
    const auto then = [&](auto kernel, const Grid& grid, const auto&... parameters) {
      if (status.ok()) {
        status = launch(operation, kernel, grid, on, parameters...);
      }
    };
    const bool keys = keys_wanted();
    const std::int64_t sliced_heads = call.query_heads * Tiles::slices;
    const std::int64_t blocks = call.sequences * call.limits.max_token_segments * sliced_heads;
    const auto scan_blocks = [](std::int64_t numbers) {
      return ceil_div<std::int64_t>(numbers, state_scan_tuning.threads);
    };
    const auto add_up = [&](const TensorView<Element>& from, const TensorView<Element>& to) {
      if (!is_empty(to) && from.heads > to.heads) {
        then(sum_gradients_sm90<Config>, {call.record_chunks * to.heads, 128, 0, false}, call, from, to);
      }
    };
    if constexpr (Tiles::given_products) {
      const auto& products = call.output_products;
      then(output_products_sm90<Config>,
           {ceil_div<std::int64_t>(products.batch * products.tokens * products.heads, 32), 256, 0, false}, call);
    }
    if (call.may_split()) {
      then(segment_sums_sm90<Config>,
           {sums.sequences * sums.max_items() * sums.heads * HopperLayout<Config>::slices,
            HopperLayout<Config>::state_warp_threads, HopperLayout<Config>::sum_bytes},
           sums);
      then(state_scan<HopperCall<Config>>, scan_grid(sums, true), sums);
    }
    using Queries = BackwardLayout<Config, BackwardPass::queries>;
    using Keys = BackwardLayout<Config, BackwardPass::keys>;
    then(segment_gradients_sm90<Config, BackwardPass::queries>,
         {blocks, Tiles::threads, Queries::shared_bytes, call.may_split() || Tiles::given_products}, call, keys);
    if (!keys) {
      add_up(call.query_gradient, query_gradient_);
      return status;
    }
    if (call.limits.max_token_segments > 1) {
      then(reverse_sums_sm90<Config>, {blocks, Tiles::state_warp_threads, Keys::sum_bytes, true}, call);
      then(
          reverse_scan_sm90<Config>,
          {call.sequences * sliced_heads * scan_blocks(Call::SliceFormat::head_values), state_scan_tuning.threads, 0, true},
          call);
    }
    const bool encoder = !is_empty(call.key_encoder_gradient) || !is_empty(call.value_encoder_gradient);
    then(segment_gradients_sm90<Config, BackwardPass::keys>, {blocks, Tiles::threads, Keys::shared_bytes, true}, call,
         encoder);
    if (encoder) {
      then(encoder_gradients_sm90<Config>,
           {call.sequences * call.heads * Tiles::slices * call.encoder_parts, Tiles::threads,
            EncoderLayout<Config>::shared_bytes, true},
           call);
      if (Tiles::slices > 1 && !is_empty(key_encoder_gradient_)) {
        then(sum_encoder_gradients_sm90<Config>, {call.sequences * call.heads * call.encoder_parts, 128, 0, false}, call,
             call.key_encoder_gradient, key_encoder_gradient_);
      }
    }
    if (!call.initial_state_gradient.empty()) {
      then(initial_gradients_sm90<Config>,
           {call.sequences * call.heads * scan_blocks(Call::GradientFormat::head_values), state_scan_tuning.threads, 0,
            false},
           call);
    }
    add_up(call.query_gradient, query_gradient_);
    add_up(call.key_gradient, key_gradient_);
    add_up(call.value_gradient, value_gradient_);
    return status;
  }

 private:
  template <class T>
  static bool is_empty(const TensorView<T>& view) {
    return view.batch == 0 || view.tokens == 0 || view.heads == 0;
  }

  /// What `describe` demands of a view.
  template <class T>
  static bool reachable(const TensorView<T>& view) {
    const auto steps_well = [](std::int64_t extent, std::int64_t stride) {
      return extent == 1 || (stride > 0 && stride % 8 == 0 && stride < std::int64_t{1} << 39);
    };
    return is_empty(view) ||
           (reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0 && steps_well(view.tokens, view.token_stride) &&
            steps_well(view.heads, view.head_stride) && steps_well(view.batch, view.batch_stride) &&
            larger(larger(view.tokens, view.heads), view.batch) <= INT32_MAX - Tiles::chunk);
  }

  [[nodiscard]] bool keys_wanted() const {
    return !is_empty(call_.key_gradient) || !is_empty(call_.value_gradient) || !is_empty(call_.key_encoder_gradient) ||
           !is_empty(call_.value_encoder_gradient) || !call_.initial_state_gradient.empty();
  }

  /// `sums`: for the prefill's kernel, whose slices of v may be narrower.
  [[nodiscard]] bool describe_tensors(HopperBackwardMaps& maps, HopperMaps& sums) const {
    const TensorBox inputs{Tiles::chunk, Tiles::Packing::input_dim, CU_TENSOR_MAP_SWIZZLE_32B};
    const TensorBox values{Tiles::chunk, Tiles::columns, CU_TENSOR_MAP_SWIZZLE_128B};
    const TensorBox summed_values{Tiles::chunk, HopperLayout<Config>::columns, CU_TENSOR_MAP_SWIZZLE_128B};
    const TensorBox stores{16, Tiles::columns, CU_TENSOR_MAP_SWIZZLE_128B};
    const auto& args = call_.args;
    const bool described =
        describe(args.query, inputs, maps.query) && describe(args.key, inputs, maps.key) &&
        describe(args.value, values, maps.value) && describe(args.key_encoder, inputs, maps.key_encoder) &&
        describe(args.value_encoder, values, maps.value_encoder) &&
        describe(call_.output_gradient, values, maps.output_gradient) &&
        describe(call_.value_gradient, stores, maps.value_gradient) &&
        describe(call_.value_encoder_gradient, stores, maps.value_encoder_gradient) &&
        describe(args.value, summed_values, sums.value) && describe(args.value_encoder, summed_values, sums.value_encoder);
    sums.key = maps.key;
    sums.key_encoder = maps.key_encoder;
    return described;
  }

  /// The call whose segment sums and state scan pass `queries` starts from, without its tensor maps.
  [[nodiscard]] HopperCall<Config> prefill_call() const {
    HopperCall<Config> prefill;
    prefill.args = call_.args;
    prefill.limits = call_.limits;
    prefill.sequences = call_.sequences;
    prefill.heads = call_.heads;
    prefill.partial_states = starts_;
    return prefill;
  }

  Call call_;
  float* starts_ = nullptr;
  TensorView<Element> query_gradient_;  // where the caller wants them; `call_` has their terms
  TensorView<Element> key_gradient_;
  TensorView<Element> value_gradient_;
  TensorView<Element> key_encoder_gradient_;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
