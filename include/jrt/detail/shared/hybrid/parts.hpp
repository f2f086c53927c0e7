// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/plan/prefill_plan.hpp"
#include "jrt/detail/shared/linear/denominators.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/detail/shared/window/keys.hpp"
#include "jrt/mixer/hybrid_attention.hpp"
#include "jrt/policy/normaliser.hpp"

/// The two mixers that HybridAttention is made of. First linear attention, whose keys are those that leave the
/// window: at token i it takes key i − L − 1. It writes outputs, normalised, and their denominators. Then window attention,
/// whose online softmax starts with these for the key of score 0.
///
///     token                0  1  2  3  4  5  6      L = 2, four tokens of an earlier call in the ring (a ring holds L + 1)
///     the window's keys    b… c… d… 0… 1… 2… 3…     … up to the token itself
///     the key that leaves  b  c  d  0  1  2  3
///
/// Where sequences are short of keys, none leaves: features, value and weight of such a key are 0.
namespace jrt::detail {

template <class Linear, class Window>
using PairFormat = HybridFormat<StateFormatOf<Linear>, StateFormatOf<Window>>;

/// A part's state in a head of the whole: heads are further apart.
template <class Format, class Whole>
struct FormatInWhole : Format {
  static constexpr std::int64_t head_elements =
      Whole::head_bytes / static_cast<std::int64_t>(sizeof(typename Format::Scalar));
  static constexpr std::int64_t slot_bytes(std::int64_t heads) { return Whole::slot_bytes(heads); }
};

/// The window, with the ring in the whole's state, and sums that go on.
template <class Linear, class Window>
struct WindowPart : Window {
  using PartFormat = FormatInWhole<StateFormatOf<Window>, PairFormat<Linear, Window>>;
  using Denominator = ConfigCompute<Linear>;
  static constexpr double epsilon = Linear::Normaliser::epsilon;
};

/// Linear attention over all keys that leave the window, from the ring or from the call.
template <class LinearT, class Window>
struct LinearPartKeys : LinearT {
  using PartFormat = FormatInWhole<StateFormatOf<LinearT>, PairFormat<LinearT, Window>>;
  using Ring = WindowPart<LinearT, Window>;
  using Normaliser = SumNormaliser<-30>;  // a mean to the last bit; ε is added once, to the sum of both kinds of weights
  static constexpr bool consumes_evicted_keys = true;
  static constexpr std::int64_t delay = Window::left_window + 1;  // tokens between a key and the query that it is old for

  /// The tokens of a sequence, behind the left pads, that this operator has outputs for.
  static JRT_DETAIL_HD constexpr TokenRange part_of(const TokenRange& tokens) { return tokens; }
};

/// Which sequences take no part in a call, whose own states are not all that the operator at hand has.
template <class Format>
struct Participants {
  StateSlots<Format> initial{};
  const std::uint8_t* has_initial = nullptr;
  StateSlots<Format> final{};

  [[nodiscard]] JRT_DETAIL_HD bool skipped(std::int64_t b) const {
    return sequence_skipped(initial, has_initial, final, b);
  }
};

/// What the linear part of a mixer needs besides the arguments of linear attention: where old keys are, and who takes part.
template <class Config>
struct LinearPartArgs : PrefillArgs<Config> {
  using RingFormat = StateFormatOf<typename Config::Ring>;

  StateSlots<RingFormat> rings{};  // of the call's initial state
  const std::uint8_t* has_rings = nullptr;
  Participants<StateFormatOf<Config>> participants{};
};

template <class Config>
requires requires {
  typename Config::Ring;
}
struct PrefillInput<Config> {
  using type = LinearPartArgs<Config>;
};

/// Plan of sequence `b` of the linear part, which may have outputs for a part of the tokens, and views of those alone.
template <class Config>
JRT_DETAIL_HD constexpr PrefillPlan plan_prefill(const LinearPartArgs<Config>& args, const SplitLimits& layout,
                                                 std::int64_t b) {
  return plan_sequence<Config>(args, layout, b, args.key.tokens, args.participants.skipped(b),
                               [](const TokenRange& tokens) { return Config::part_of(tokens); });
}

/// Where one head of one sequence has the keys that leave its window. Token i of the sequence goes with key i − delay: in
/// the views for tokens from `from_views` on, in the ring before, and nowhere before `first_key`.
template <class Config>
struct EvictedKeys : KeySource<typename Config::Element> {
  using Element = typename Config::Element;
  using Source = KeySource<Element>;
  using Ring = typename Config::Ring;

  const Element* ring = nullptr;
  std::int64_t cached = 0;
  std::int64_t first_key = 0;
  std::int64_t from_views = 0;

  JRT_DETAIL_HD EvictedKeys(const LinearPartArgs<Config>& args, const PrefillPlan& plan, std::int64_t key_head)
      : Source{args.key, args.value, plan.span.batch_row, plan.span.first_token - Config::delay, key_head, 0, plan.span} {
    if (reads_initial_state(args.rings, args.has_rings, plan.sequence)) {
      ring = args.rings.pool.head(args.rings.slot(plan.sequence), key_head);
      cached = cached_count<StateFormatOf<Ring>>(ring);
    }
    from_views = plan.span.left_pad + Config::delay;
    first_key = from_views - smaller(cached, Config::delay);
  }

  [[nodiscard]] JRT_DETAIL_HD const Element* key_row(std::int64_t token) const {
    return token >= from_views ? Source::key_row(token) : ring + row_of(token) * Ring::head_dim;
  }
  [[nodiscard]] JRT_DETAIL_HD const Element* value_row(std::int64_t token) const {
    return token >= from_views ? Source::value_row(token)
                               : ring + StateFormatOf<Ring>::value_offset + row_of(token) * Ring::value_dim;
  }
  /// Tokens of the range before which no key leaves.
  [[nodiscard]] JRT_DETAIL_HD int tokens_without_key_in(const TokenRange& range) const {
    return static_cast<int>(clamped(first_key - range.begin, 0, range.size()));
  }

 private:
  [[nodiscard]] JRT_DETAIL_HD std::int64_t row_of(std::int64_t token) const {
    return ring_row(cached + token - from_views, Ring::left_window);
  }
};

template <class Config>
requires(consumes_evicted_keys<Config>) JRT_DETAIL_HD EvictedKeys<Config> token_source(const LinearPartArgs<Config>& args,
                                                                                       const PrefillPlan& plan,
                                                                                       std::int64_t head) {
  return {args, plan, head};
}

/// What a step needs to find the keys that leave.
template <class Config>
struct EvictedStep {
  using Element = typename Config::Element;
  using Ring = typename Config::Ring;

  StateSlots<StateFormatOf<Ring>> rings{};
  StagingView<Ring> staging{};

  /// Keys of one head. `staged` rows stand in the staging buffer before the call's tokens, if it has any.
  [[nodiscard]] JRT_DETAIL_HD WindowKeys<Ring> keys(std::int64_t b, std::int64_t head, std::int64_t staged,
                                                    const TensorView<const Element>& key,
                                                    const TensorView<const Element>& value) const {
    WindowKeys<Ring> keys;
    keys.set_ring(rings.pool.head(rings.slot(b), head));
    if (staging.data != nullptr) {
      keys.set_staging(staging, b, head, staged);
    }
    if (key.data != nullptr) {
      keys.set_views(key, value, b, 0, head);
    }
    return keys;
  }

  /// The key that leaves at token t, counted from the first staged one.
  [[nodiscard]] static JRT_DETAIL_HD std::int64_t evicted(const WindowKeys<Ring>& keys, std::int64_t t) {
    return t - keys.staged_tokens - Config::delay;
  }
  /// Tokens before the first at which a key leaves.
  [[nodiscard]] static JRT_DETAIL_HD std::int64_t tokens_without_key(const WindowKeys<Ring>& keys) {
    return Config::delay - smaller(keys.cached, Config::delay);
  }
};

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
  std::int64_t keys = 0;   // tokens at which a key may leave
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

/// The parts of a mixer, as their operations see them.
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
  static auto rings(const StateSlots<Format>& slots) { return part_slots<Ring>(slots, Format::window_offset); }
  static StagingView<Ring> staging(const StagingView<Config>& view) {
    return {view.data, view.sequences, view.tokens, view.heads};
  }

  template <class Args>
  static std::int64_t denominator_count(const Args& args) {
    return args.query.batch * args.query.tokens * args.query.heads;
  }
  template <class Args>
  static Denominators denominators(const Args& args, Denominator* memory) {
    return view_bthd(memory, {args.query.batch, args.query.tokens, args.query.heads, 1});
  }

  /// Arguments of the linear part, all of it or another operator's.
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

  /// The window's call, whose sums go on from `denominators` and the outputs so far.
  static WindowCall<Ring> window(const PrefillArgs<Config>& args, const Denominators& denominators) {
    WindowCall<Ring> call = window_of_tokens(args, denominators);
    call.sequences = args.sequences;
    call.initial = rings(args.initial_state);
    call.final = rings(args.final_state);
    call.has_initial = args.has_initial_state;
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
