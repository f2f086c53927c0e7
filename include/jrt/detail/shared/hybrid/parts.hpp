// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/shared/hybrid/evicted_keys.hpp"
#include "jrt/detail/shared/hybrid/linear_part.hpp"
#include "jrt/detail/shared/window/keys.hpp"
#include "jrt/mixer/hybrid_attention.hpp"

/// A call of the hybrid mixer as calls of its two mixers.
namespace jrt::detail {

/// The linear part of a step, a staged step or a commit.
template <class Config>
struct LinearPartStep {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  TensorView<const Element> query{};
  TensorView<const Element> key{};
  TensorView<const Element> value{};
  TensorView<Element> output{};
  TensorView<ConfigCompute<Config>> denominators{};
  StateSlots<Format> source{};
  StateSlots<Format> destination{};  // empty: the state is not written
  std::int64_t already_staged = 0;
  const std::int32_t* accepted_tokens = nullptr;
  typename Config::FeatureMap feature_map{};
  EvictedStep<Config> evicted{};
  std::int64_t sequences = 0;
  std::int64_t heads = 0;
  std::int64_t keys = 0;   // tokens at which a key may be evicted
  std::int64_t group = 0;  // query heads; 0 without queries
};

// -- parts of arguments --------------------------------------------------------------------------------------------------

template <class Part, class Whole>
StateSlots<StateFormatOf<Part>> part_slots(const StateSlots<Whole>& slots, std::int64_t offset) {
  using Scalar = typename StateFormatOf<Part>::Scalar;
  if (slots.empty()) {
    return {};
  }
  auto* const bytes = reinterpret_cast<std::byte*>(slots.pool.data) + offset;
  constexpr auto units = static_cast<std::int64_t>(sizeof(typename Whole::Scalar) / sizeof(Scalar));
  return {{reinterpret_cast<Scalar*>(bytes), slots.pool.slots, slots.pool.heads, slots.pool.slot_stride * units},
          slots.slots};
}

/// The two mixers of a hybrid, with the arguments of their operations.
template <HybridConfig Config>
struct HybridParts {
  using Linear = typename Config::Linear;
  using Window = typename Config::Window;
  using Format = StateFormatOf<Config>;
  using LinearPart = LinearPartKeys<Linear, Window>;
  using Ring = WindowPart<Linear, Window>;
  using Denominator = ConfigCompute<Linear>;
  using Denominators = TensorView<Denominator>;

  template <class Part>
  static auto linear_slots(const StateSlots<Format>& slots) {
    return part_slots<Part>(slots, 0);
  }
  static auto rings(const StateSlots<Format>& slots) { return part_slots<Ring>(slots, Format::window_offset_bytes); }
  static StagingView<Ring> staging(const StagingView<Config>& view) {
    return {view.data, view.sequences, view.tokens, view.heads, view.heads_apart};
  }

  template <class Args>
  static std::int64_t denominator_count(const Args& args) {
    return args.query.batch * args.query.tokens * args.query.heads;
  }
  template <class Args>
  static Denominators denominators(const Args& args, Denominator* memory) {
    return view_bhtd(memory, {args.query.batch, args.query.tokens, args.query.heads, 1});
  }

  /// Arguments of the whole linear part, or of another operator of it.
  template <class Part = LinearPart>
  static LinearPartArgs<Part> linear(const PrefillArgs<Config>& args, const Denominators& denominators) {
    LinearPartArgs<Part> part;
    part.query = args.query;
    part.key = args.key;
    part.value = args.value;
    if constexpr (Part::Mask::reads_encoder) {
      part.key_encoder = args.key_encoder;
      part.value_encoder = args.value_encoder;
    }
    part.output = args.output;
    part.sequences = args.sequences;
    part.initial_state = linear_slots<Part>(args.initial_state);
    part.final_state = linear_slots<Part>(args.final_state);
    part.has_initial_state = args.has_initial_state;
    part.feature_map = args.feature_map;
    part.denominators = denominators;
    part.rings = rings(args.initial_state);
    part.has_rings = args.has_initial_state;
    part.participants = {part.initial_state, args.has_initial_state, part.final_state};
    return part;
  }

  static LinearPartStep<LinearPart> linear(const DecodeArgs<Config>& args, const Denominators& denominators) {
    LinearPartStep<LinearPart> step = of_tokens(args, denominators);
    step.source = linear_slots<LinearPart>(args.source);
    step.destination = linear_slots<LinearPart>(destination_of(args));
    step.evicted.rings = rings(args.source);
    return step;
  }
  static LinearPartStep<LinearPart> linear(const StagedStepArgs<Config>& args, const Denominators& denominators) {
    LinearPartStep<LinearPart> step = of_tokens(args, denominators);
    step.source = linear_slots<LinearPart>(args.state);
    step.already_staged = args.already_staged;
    step.keys += args.already_staged;
    step.evicted.rings = rings(args.state);
    step.evicted.staging = staging(args.staging);
    return step;
  }
  static LinearPartStep<LinearPart> linear(const CommitArgs<Config>& args) {
    LinearPartStep<LinearPart> step;
    step.source = linear_slots<LinearPart>(args.source);
    step.destination = linear_slots<LinearPart>(destination_of(args));
    step.accepted_tokens = args.accepted_tokens;
    step.feature_map = args.feature_map;
    step.evicted.rings = rings(args.source);
    step.evicted.staging = staging(args.staging);
    step.sequences = args.staging.sequences;
    step.heads = args.staging.heads;
    step.keys = args.staging.tokens;
    return step;
  }

  /// The window's call, whose softmax carry-in is `denominators` and the outputs so far.
  static WindowCall<Ring> window(const PrefillArgs<Config>& args, const Denominators& denominators) {
    WindowCall<Ring> call = window_of_tokens(args, denominators);
    call.sequences = args.sequences;
    call.initial = rings(args.initial_state);
    call.final = rings(args.final_state);
    call.has_initial = args.has_initial_state;
    call.log_sum_exp = args.log_sum_exp;
    return call;
  }
  static WindowCall<Ring> window(const DecodeArgs<Config>& args, const Denominators& denominators) {
    WindowCall<Ring> call = window_of_tokens(args, denominators);
    call.initial = rings(args.source);
    call.final = rings(destination_of(args));
    return call;
  }
  static WindowCall<Ring> window(const StagedStepArgs<Config>& args, const Denominators& denominators) {
    WindowCall<Ring> call = window_of_tokens(args, denominators);
    call.initial = rings(args.state);
    call.staging = staging(args.staging);
    call.already_staged = args.already_staged;
    return call;
  }
  static CommitArgs<Ring> window(const CommitArgs<Config>& args) {
    return {staging(args.staging), args.accepted_tokens, rings(args.source), rings(args.destination)};
  }

 private:
  template <class Args>
  static LinearPartStep<LinearPart> of_tokens(const Args& args, const Denominators& denominators) {
    LinearPartStep<LinearPart> step;
    step.query = args.query;
    step.key = args.key;
    step.value = args.value;
    step.output = args.output;
    step.feature_map = args.feature_map;
    step.denominators = denominators;
    step.sequences = args.query.batch;
    step.heads = args.key.heads;
    step.keys = args.key.tokens;
    step.group = query_group(args);
    return step;
  }
  template <class Args>
  static WindowCall<Ring> window_of_tokens(const Args& args, const Denominators& denominators) {
    WindowCall<Ring> call;
    call.query = args.query;
    call.key = args.key;
    call.value = args.value;
    call.output = args.output;
    call.scale = default_window_scale<Ring>;
    call.before.denominators = denominators;
    return call;
  }
};

}  // namespace jrt::detail
