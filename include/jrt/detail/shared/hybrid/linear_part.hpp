// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/plan/prefill_plan.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/detail/shared/window/keys.hpp"
#include "jrt/mixer/hybrid_attention.hpp"
#include "jrt/policy/normaliser.hpp"

/// The two mixers that HybridAttention is made of. First linear attention runs over the evicted keys: at token i it adds
/// key i − L − 1. It writes normalised outputs and their denominators. Then window attention runs, whose online softmax
/// starts from these as from a key of score 0.
///
///     token                0  1  2  3  4  5  6      L = 2, four tokens of an earlier call in the ring (a ring holds L + 1)
///     the window's keys    b… c… d… 0… 1… 2… 3…     … up to the token itself
///     the evicted key      b  c  d  0  1  2  3
///
/// Where a sequence has too few keys, none is evicted: features, value and weight of the missing key are 0.
namespace jrt::detail {

template <class Linear, class Window>
using PairFormat = HybridFormat<StateFormatOf<Linear>, StateFormatOf<Window>>;

/// Format of one mixer's state inside the hybrid state, where heads are further apart.
template <class Format, class Whole>
struct FormatInWhole : Format {
  static constexpr std::int64_t head_elements =
      Whole::head_bytes / static_cast<std::int64_t>(sizeof(typename Format::Scalar));
  static constexpr std::int64_t slot_bytes(std::int64_t heads) { return Whole::slot_bytes(heads); }
};

/// The window attention, with its ring in the hybrid state and a softmax carry-in.
template <class Linear, class Window>
struct WindowPart : Window {
  using PartFormat = FormatInWhole<StateFormatOf<Window>, PairFormat<Linear, Window>>;
  using Denominator = ConfigCompute<Linear>;
  static constexpr bool continues_softmax = true;
  static constexpr double epsilon = Linear::Normaliser::epsilon;
};

/// Linear attention over all evicted keys, from the ring or from the call.
template <class LinearT, class Window>
struct LinearPartKeys : LinearT {
  using PartFormat = FormatInWhole<StateFormatOf<LinearT>, PairFormat<LinearT, Window>>;
  using Ring = WindowPart<LinearT, Window>;
  using Normaliser = SumNormaliser<-30>;  // negligible ε: the real one is added once, to the sum of both kinds of weights
  static constexpr bool consumes_evicted_keys = true;
  static constexpr std::int64_t delay = Window::left_window + 1;  // tokens from a key to its eviction

  /// The tokens of a sequence, after the left pads, for which this operator has outputs.
  static JRT_DETAIL_HD constexpr TokenRange part_of(const TokenRange& tokens) { return tokens; }
};

/// Which sequences of a call are skipped, where the operator at hand has only some of the call's states.
template <class Format>
struct Participants {
  StateSlots<Format> initial{};
  const std::uint8_t* has_initial = nullptr;
  StateSlots<Format> final{};

  [[nodiscard]] JRT_DETAIL_HD bool skipped(std::int64_t b) const {
    return sequence_skipped(initial, has_initial, final, b);
  }
};

/// What the linear part of a mixer needs besides the arguments of linear attention: the rings that hold older keys, and
/// which sequences take part.
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

/// Plan of sequence `b` of the linear part, which may have outputs for only some of the tokens, and views of those alone.
template <class Config>
JRT_DETAIL_HD constexpr PrefillPlan plan_prefill(const LinearPartArgs<Config>& args, const SplitLimits& layout,
                                                 std::int64_t b) {
  return plan_sequence<Config>(args, layout, b, args.key.tokens, args.participants.skipped(b),
                               [](const TokenRange& tokens) { return Config::part_of(tokens); });
}

}  // namespace jrt::detail
