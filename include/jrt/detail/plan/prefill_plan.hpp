// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/host_device.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/segment.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/sequences.hpp"

/// The integer arithmetic of a prefill, the same on every backend: which tokens of a sequence take part, and into how many
/// segments they are split.
namespace jrt::detail {

/// How one sequence is processed. A sequence that is not split needs no partial states. A split one has a partial state for
/// every item: its encoder segments, then its token segments.
struct PrefillPlan {
  SequenceSpan span;
  TokenRange encoder;  // tokens of the encoder region that take part
  TokenRange tokens;   // tokens that take part
  std::int64_t encoder_segments = 0;
  std::int64_t token_segments = 1;
  bool skipped = false;
  std::int64_t sequence = 0;

  [[nodiscard]] JRT_DETAIL_HD constexpr bool split() const { return encoder_segments > 1 || token_segments > 1; }
  [[nodiscard]] JRT_DETAIL_HD constexpr std::int64_t items() const {
    return split() ? encoder_segments + token_segments : 0;
  }
};

/// A backend's limits for all sequences of a call.
struct SplitLimits {
  std::int64_t heads_in_batch = 1;  // sequences x key/value heads
  std::int64_t workers = 1;
  std::int64_t chunk = 1;  // tokens
  // Segments for which the backend has memory.
  std::int64_t max_token_segments = INT64_MAX;
  std::int64_t max_encoder_segments = INT64_MAX;
  // Below this a sequence is not split: the second pass over its tokens must be worth it.
  std::int64_t min_segments = 1;
  // Tokens of a sequence that make one more worker worth its partial states; 0 for no limit.
  std::int64_t tokens_per_worker = 0;

  /// Segments of `tokens` tokens: as the policy says, but at most one per chunk.
  template <class Split>
  [[nodiscard]] JRT_DETAIL_HD constexpr std::int64_t segments(std::int64_t tokens) const {
    const auto chunks = larger<std::int64_t>(1, ceil_div(tokens, chunk));
    const std::int64_t worthwhile =
        tokens_per_worker == 0 ? workers : clamped(tokens / tokens_per_worker, 1, larger<std::int64_t>(workers, 1));
    return clamped(Split::segments(tokens, heads_in_batch, worthwhile), 1, chunks);
  }
  template <class Split>
  [[nodiscard]] JRT_DETAIL_HD constexpr std::int64_t token_segments(std::int64_t tokens) const {
    const std::int64_t wanted = smaller(segments<Split>(tokens), max_token_segments);
    return wanted < min_segments ? 1 : wanted;
  }
  /// Segments of the encoder region of a sequence with `tokens` tokens: one if those are too few to be split.
  template <class Split>
  [[nodiscard]] JRT_DETAIL_HD constexpr std::int64_t encoder_segments(std::int64_t encoder_tokens,
                                                                      std::int64_t tokens) const {
    if (encoder_tokens <= 0) {
      return 0;
    }
    const bool whole = min_segments > 1 && tokens > 0 && token_segments<Split>(tokens) == 1;
    return whole ? 1 : smaller(segments<Split>(encoder_tokens), max_encoder_segments);
  }
};

/// Plan of sequence `b`, unless it is skipped: `extent` is the token extent of the views, and `part_of(tokens)` are the
/// tokens with outputs.
template <class Config, class PartOf>
JRT_DETAIL_HD constexpr PrefillPlan plan_sequence(const PrefillArgs<Config>& args, const SplitLimits& limits,
                                                  std::int64_t b, std::int64_t extent, bool skipped,
                                                  const PartOf& part_of) {
  PrefillPlan plan;
  plan.sequence = b;
  plan.span =
      within_views(sequence_span(args.sequences, b, extent, args.key_encoder.tokens), extent, args.key_encoder.tokens);
  plan.skipped = skipped;
  if (skipped) {
    return plan;
  }
  const std::int64_t start = Config::Padding::keeps_padded_keys ? 0 : plan.span.left_pad;
  plan.tokens = part_of(TokenRange{smaller(start, plan.span.tokens), plan.span.tokens});
  plan.token_segments = limits.token_segments<typename Config::Split>(plan.tokens.size());
  if constexpr (Config::Mask::reads_encoder) {
    plan.encoder = {smaller(start, plan.span.prefix), plan.span.prefix};
    plan.encoder_segments = limits.encoder_segments<typename Config::Split>(plan.encoder.size(), plan.tokens.size());
  }
  return plan;
}

/// Plan of sequence `b` of a prefill.
template <class Config>
JRT_DETAIL_HD constexpr PrefillPlan plan_prefill(const PrefillArgs<Config>& args, const SplitLimits& limits,
                                                 std::int64_t b) {
  return plan_sequence(args, limits, b, args.query.tokens,
                       sequence_skipped(args.initial_state, args.has_initial_state, args.final_state, b),
                       [](const TokenRange& tokens) { return tokens; });
}

/// Tokens from a key to the first query that sees it, other than 0 in the linear part of a hybrid mixer
/// (shared/hybrid/gradients.hpp).
template <class Config>
inline constexpr std::int64_t key_delay = [] {
  if constexpr (requires { Config::key_delay; }) {
    return Config::key_delay;
  } else {
    return std::int64_t{0};
  }
}();

/// Leading tokens whose key is treated as zero.
template <class Config>
JRT_DETAIL_HD constexpr std::int64_t zero_keys(const PrefillPlan& plan) {
  return Config::Padding::keeps_padded_keys ? plan.span.left_pad : 0;
}

/// Accumulation is a prefill without queries whose encoder region is the run of keys. This operator has only the policies
/// that matter to it, so operators that differ elsewhere share one.
template <Element ElementT, Element Scalar, class Map, class PaddingT, class SplitT, class ProductsT, int ValueDim>
struct EncoderOperator {
  using Element = ElementT;
  using StateScalar = Scalar;
  using FeatureMap = Map;
  using Mask = PrefixMask;
  using Normaliser = Unnormalised;
  using Padding = PaddingT;
  using Split = SplitT;
  using Products = ProductsT;
  static constexpr int value_dim = ValueDim;
  static constexpr bool has_queries = false;
};

template <class Config>
using EncoderOnly =
    EncoderOperator<typename Config::Element, typename Config::StateScalar, typename Config::FeatureMap,
                    typename Config::Padding, typename Config::Split, typename ProductsOf<Config>::type, Config::value_dim>;

/// Whether an operator has queries, that is, is not an EncoderOperator.
template <class Config>
inline constexpr bool has_queries = [] {
  if constexpr (requires { Config::has_queries; }) {
    return Config::has_queries;
  } else {
    return true;
  }
}();

template <class Config>
PrefillArgs<EncoderOnly<Config>> as_encoder(const AccumulateArgs<Config>& args) {
  PrefillArgs<EncoderOnly<Config>> encoder;
  encoder.query.heads = args.key.heads;
  encoder.key.heads = args.key.heads;
  encoder.key_encoder = args.key;
  encoder.value_encoder = args.value;
  encoder.sequences.cu_encoder_seqlens = args.sequences.cu_seqlens;
  encoder.sequences.prefix_lens = args.sequences.seq_lens;
  encoder.sequences.left_pads = args.sequences.left_pads;
  encoder.sequences.first_positions = args.sequences.first_positions;
  encoder.sequences.max_tokens = args.sequences.max_tokens;
  encoder.initial_state = args.initial_state;
  encoder.final_state = args.final_state;
  encoder.has_initial_state = args.has_initial_state;
  encoder.feature_map = args.feature_map;
  return encoder;
}

}  // namespace jrt::detail
