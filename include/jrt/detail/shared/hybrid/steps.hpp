// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/shared/hybrid/parts.hpp"

/// The linear part of a prefill in three steps, for kernels that read keys in tiles, from views alone. Only the first L + 1
/// tokens evict keys of the ring. All others evict keys of the call; for them queries and outputs begin `delay` tokens
/// after keys and values:
///
///     encoder   initial state + encoder region
///     first     tokens 0 … L, with the keys of the ring         (on kernels that read keys row by row)
///     others    tokens L + 1 …, token i with key i − L − 1
///
/// Each starts from the states that the one before has stored in slots of the workspace.
namespace jrt::detail {

template <class Linear, class Window>
struct LinearPartEncoder : EncoderOnly<Linear> {
  using PartFormat = typename LinearPartKeys<Linear, Window>::PartFormat;
};

template <class Linear, class Window>
struct HeadSpan : LinearPartKeys<Linear, Window> {
  using Mask = CausalMask;

  static JRT_DETAIL_HD constexpr TokenRange part_of(const TokenRange& tokens) {
    return {tokens.begin, smaller(tokens.end, tokens.begin + LinearPartKeys<Linear, Window>::delay)};
  }
};

/// Tokens are counted like their keys, which begin with the sequence.
template <class Linear, class Window>
struct TailSpan : LinearPartKeys<Linear, Window> {
  using Mask = CausalMask;
  static constexpr bool consumes_evicted_keys = false;

  static JRT_DETAIL_HD constexpr TokenRange part_of(const TokenRange& tokens) {
    return {tokens.begin, larger(tokens.begin, tokens.end - LinearPartKeys<Linear, Window>::delay)};
  }
};

template <HybridConfig Config>
class LinearPartSteps {
 public:
  using Parts = HybridParts<Config>;
  using Linear = typename Parts::Linear;
  using Window = typename Parts::Window;
  using Encoder = LinearPartEncoder<Linear, Window>;
  using First = HeadSpan<Linear, Window>;
  using Others = TailSpan<Linear, Window>;
  using Denominators = typename Parts::Denominators;
  using Format = StateFormatOf<First>;

  static constexpr std::int64_t delay = First::delay;
  static constexpr bool reads_encoder = Linear::Mask::reads_encoder;

  /// `args` must outlive it.
  explicit LinearPartSteps(const PrefillArgs<Config>& args) : args_(args) {}

  [[nodiscard]] bool has_encoder() const { return reads_encoder && args_.key_encoder.tokens > 0; }
  /// Without a first step the first tokens evict no key, and there is no state.
  [[nodiscard]] bool has_first() const { return !args_.initial_state.empty() || has_encoder() || !has_others(); }
  [[nodiscard]] bool has_others() const { return args_.query.tokens > delay; }

  [[nodiscard]] PrefillArgs<Encoder> encoder(const StateSlots<Format>& between) const {
    PrefillArgs<Encoder> step;
    step.query.heads = args_.key.heads;
    step.key.heads = args_.key.heads;
    step.key_encoder = args_.key_encoder;
    step.value_encoder = args_.value_encoder;
    step.sequences.cu_encoder_seqlens = args_.sequences.cu_encoder_seqlens;
    step.sequences.prefix_lens = args_.sequences.prefix_lens;
    step.sequences.left_pads = args_.sequences.left_pads;
    step.sequences.max_tokens = args_.sequences.max_tokens;
    step.initial_state = Parts::template linear_slots<Encoder>(args_.initial_state);
    step.has_initial_state = args_.has_initial_state;
    step.final_state = between;
    step.feature_map = args_.feature_map;
    return step;
  }

  [[nodiscard]] LinearPartArgs<First> first(const StateSlots<Format>& between, const Denominators& denominators) const {
    LinearPartArgs<First> step = Parts::template linear<First>(args_, denominators);
    if (has_encoder()) {
      step.initial_state = between;
      step.has_initial_state = nullptr;
    }
    if (has_others()) {
      step.final_state = between;
    }
    return step;
  }

  [[nodiscard]] LinearPartArgs<Others> others(const StateSlots<Format>& between, const Denominators& denominators) const {
    LinearPartArgs<Others> step = Parts::template linear<Others>(args_, denominators);
    const std::int64_t count = larger<std::int64_t>(0, args_.query.tokens - delay);
    const auto shift = [&](auto& view) {
      if (view.data != nullptr && count > 0) {
        view = view.slice_tokens(delay, count);
      }
      view.tokens = count;
    };
    shift(step.query);
    shift(step.output);
    shift(step.denominators);
    step.has_initial_state = nullptr;
    step.initial_state = has_first() ? between : StateSlots<Format>{};
    return step;
  }

 private:
  const PrefillArgs<Config>& args_;
};

}  // namespace jrt::detail
