// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/plan/window_range.hpp"
#include "jrt/mixer/window_attention.hpp"

namespace jrt::detail {

/// The 64 bits stored as the token count of one head of a cache. Pools of caches are aligned to 16 bytes, so these are,
/// too.
template <class Format>
JRT_DETAIL_HD std::int64_t stored_count(const typename Format::Scalar* head) {
  return *reinterpret_cast<const std::int64_t*>(head + Format::count_offset);
}

/// Tokens that one head of a cache has seen. A pool is the caller's memory and may hold unchecked states: rows are computed
/// from a legal count, whatever is stored.
template <class Format>
JRT_DETAIL_HD std::int64_t cached_count(const typename Format::Scalar* head) {
  return legal_count(stored_count<Format>(head), Format::rows - 1);
}
template <class Format>
JRT_DETAIL_HD void set_cached_count(typename Format::Scalar* head, std::int64_t count) {
  *reinterpret_cast<std::int64_t*>(head + Format::count_offset) = legal_count(count, Format::rows - 1);
}

/// Keys and values of one sequence and head of a call, in any memory. Tokens of the call are counted from 0 after the left
/// pads; before them come staged ones, before those the cache's.
template <WindowConfig Config>
struct WindowKeys {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;
  static constexpr std::int64_t left = Config::left_window;

  const Element* ring = nullptr;    // one head of a cache; null if there is none
  std::int64_t cached = 0;          // tokens that the cache has seen
  const Element* staged = nullptr;  // row 0 of this head's staging buffer
  std::int64_t staged_tokens = 0;   // rows there before this call
  std::int64_t staged_stride = 0;   // elements from row to row
  const Element* keys = nullptr;    // key of the call's token 0
  const Element* values = nullptr;
  std::int64_t key_stride = 0;
  std::int64_t value_stride = 0;

  /// The lowest visible token.
  [[nodiscard]] JRT_DETAIL_HD constexpr std::int64_t lowest() const { return -(smaller(cached, left) + staged_tokens); }

  /// Index of a token in its sequence, counted from 0.
  [[nodiscard]] JRT_DETAIL_HD constexpr std::int64_t position(std::int64_t token) const {
    return cached + staged_tokens + token;
  }

  /// Whether a key is rotated by its position already: those of earlier calls are.
  [[nodiscard]] JRT_DETAIL_HD static constexpr bool is_rotated(std::int64_t token) { return token < 0; }

  [[nodiscard]] JRT_DETAIL_HD const Element* key(std::int64_t token) const {
    if (token >= 0) {
      return keys + token * key_stride;
    }
    return token >= -staged_tokens ? staged + (staged_tokens + token) * staged_stride
                                   : ring + ring_row(position(token), left) * Config::head_dim;
  }
  [[nodiscard]] JRT_DETAIL_HD const Element* value(std::int64_t token) const {
    if (token >= 0) {
      return values + token * value_stride;
    }
    return token >= -staged_tokens ? staged + (staged_tokens + token) * staged_stride + Config::head_dim
                                   : ring + Format::value_offset + ring_row(position(token), left) * Config::value_dim;
  }

  JRT_DETAIL_HD void set_ring(const Element* head) {
    ring = head;
    cached = head == nullptr ? 0 : cached_count<Format>(head);
  }
  JRT_DETAIL_HD void set_views(const TensorView<const Element>& key_view, const TensorView<const Element>& value_view,
                               std::int64_t row, std::int64_t token, std::int64_t head) {
    keys = key_view.row(row, token, head);
    values = value_view.row(row, token, head);
    key_stride = key_view.token_stride;
    value_stride = value_view.token_stride;
  }
  /// `view` holds `already` rows before this call's.
  JRT_DETAIL_HD void set_staging(const StagingView<Config>& view, std::int64_t b, std::int64_t head, std::int64_t already) {
    staged = view.row(b, 0, head);
    staged_stride = view.token_stride();
    staged_tokens = already;
  }
};

/// Whether a window's softmax continues from a sum of other weights.
template <class Config>
inline constexpr bool has_softmax_carry_in = requires {
  Config::continues_softmax;
};

/// No softmax carry-in.
template <WindowConfig Config>
struct SoftmaxCarry {};
/// Softmax carry-in: outputs that are normalised sums, stored where the window's outputs go, and their denominators. The
/// weights are those of a softmax whose largest score is 0; ε is added to them.
template <WindowConfig Config>
requires(has_softmax_carry_in<Config>) struct SoftmaxCarry<Config> {
  TensorView<typename Config::Denominator> denominators{};

  [[nodiscard]] JRT_DETAIL_HD ComputeType<typename Config::Element> denominator(std::int64_t row, std::int64_t token,
                                                                                std::int64_t head) const {
    return static_cast<ComputeType<typename Config::Element>>(*denominators.row(row, token, head));
  }
};

/// Everything that the window operations need of the arguments of prefill, decode_step and staged_step, so that one
/// implementation serves the three.
template <WindowConfig Config>
struct WindowCall {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  TensorView<const Element> query{};
  TensorView<const Element> key{};
  TensorView<const Element> value{};
  TensorView<Element> output{};
  Sequences sequences{};
  StateSlots<Format> initial{};
  StateSlots<Format> final{};
  const std::uint8_t* has_initial = nullptr;
  StagingView<Config> staging{};
  std::int64_t already_staged = 0;
  double scale = 1;
  typename Config::Rotary rotary{};
  SoftmaxCarry<Config> before{};
  TensorView<ComputeType<Element>> log_sum_exp{};
  const std::int32_t* left_out = nullptr;  // [sequences] first tokens of a prefill whose outputs others make

  [[nodiscard]] JRT_DETAIL_HD std::int64_t count() const { return sequence_count(sequences, query.batch); }
  [[nodiscard]] JRT_DETAIL_HD std::int64_t group() const { return query.heads / larger<std::int64_t>(key.heads, 1); }
  /// Stores the logarithm of the sum of a query's weights, if the call wants it.
  JRT_DETAIL_HD void set_log_sum_exp(std::int64_t row, std::int64_t token, std::int64_t head,
                                     ComputeType<Element> logarithm) const {
    if (log_sum_exp.data != nullptr) {
      *log_sum_exp.row(row, token, head) = logarithm;
    }
  }
  /// First row of a sequence whose output the call makes.
  [[nodiscard]] JRT_DETAIL_HD std::int64_t first_output(std::int64_t b) const {
    return left_out == nullptr ? 0 : left_out[b];
  }
  [[nodiscard]] JRT_DETAIL_HD bool stages() const { return staging.data != nullptr; }
  [[nodiscard]] JRT_DETAIL_HD bool skipped(std::int64_t b) const {
    return sequence_skipped(initial, has_initial, final, b);
  }
  [[nodiscard]] JRT_DETAIL_HD SequenceSpan span(std::int64_t b) const {
    return within_views(sequence_span(sequences, b, query.tokens, 0), query.tokens, 0);
  }
  [[nodiscard]] JRT_DETAIL_HD WindowKeys<Config> keys(const SequenceSpan& span, std::int64_t b, std::int64_t head) const {
    WindowKeys<Config> keys;
    if (reads_initial_state(initial, has_initial, b)) {
      keys.set_ring(initial.pool.head(initial.slot(b), head));
    }
    if (stages()) {
      keys.set_staging(staging, b, head, already_staged);
    }
    keys.set_views(key, value, span.batch_row, span.first_token + span.left_pad, head);
    return keys;
  }
};

template <class Config>
WindowCall<Config> window_call(const PrefillArgs<Config>& args) {
  return {args.query,
          args.key,
          args.value,
          args.output,
          args.sequences,
          args.initial_state,
          args.final_state,
          args.has_initial_state,
          {},
          0,
          args.scale,
          args.rotary,
          {},
          args.log_sum_exp,
          nullptr};
}
template <class Config>
WindowCall<Config> window_call(const DecodeArgs<Config>& args) {
  return {args.query, args.key,   args.value,  args.output, {}, args.source, destination_of(args), nullptr, {},
          0,          args.scale, args.rotary, {},          {}, nullptr};
}
template <class Config>
WindowCall<Config> window_call(const StagedStepArgs<Config>& args) {
  return {args.query,          args.key,   args.value,  args.output, {}, args.state, {}, nullptr, args.staging,
          args.already_staged, args.scale, args.rotary, {},          {}, nullptr};
}

}  // namespace jrt::detail
