// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/host_device.hpp"

namespace jrt {

/// How the tokens of a call are divided into sequences. Every field is optional. By default each batch row of a dense view
/// is one sequence of full length without padding, whose prefix is all of `key_encoder`. The arrays have one int32 per
/// sequence, in memory that the executing device can read.
///
/// Variable length: set `count` and `cu_seqlens`; the views then have batch = 1 and hold all tokens one after the other.
struct Sequences {
  /// Number of sequences in packed views; 0 means dense views, one sequence per batch row.
  std::int64_t count = 0;
  /// (count + 1) offsets of each sequence in query, key, value and output; packed views only.
  const std::int32_t* cu_seqlens = nullptr;
  /// (count + 1) offsets of each sequence in key_encoder and value_encoder; needed if those are packed.
  const std::int32_t* cu_encoder_seqlens = nullptr;
  /// T of each sequence in dense views that are padded on the right; outputs after it are zeroed.
  const std::int32_t* seq_lens = nullptr;
  /// M, the encoder tokens of each sequence, 0 <= M <= T; if null, all of the sequence's tokens in key_encoder.
  const std::int32_t* prefix_lens = nullptr;
  /// Padded positions at the start of each sequence, counted in T and in M; their effect is set by the Padding policy.
  const std::int32_t* left_pads = nullptr;
  /// Tokens already processed before this call, for feature maps that need the position; if null, 0.
  const std::int32_t* first_positions = nullptr;
  /// Upper bound on the tokens of every sequence; 0 means the extent of the views. Used only by backends that cannot read
  /// the arrays before the launch: a tight bound keeps their workspace small when many packed sequences may be split.
  std::int64_t max_tokens = 0;
};

namespace detail {

/// One sequence of a call: where its tokens and its encoder tokens lie in the views.
struct SequenceSpan {
  std::int64_t batch_row = 0;       // row of query, key, value, output
  std::int64_t first_token = 0;     // in that row
  std::int64_t tokens = 0;          // T, left pads included
  std::int64_t encoder_row = 0;     // row of key_encoder, value_encoder
  std::int64_t encoder_first = 0;   // in that row
  std::int64_t prefix = 0;          // M, left pads included
  std::int64_t encoder_tokens = 0;  // of the sequence in the encoder views
  std::int64_t left_pad = 0;        // at most T
  std::int64_t first_position = 0;  // tokens before this call
  std::int64_t row_tokens = 0;      // tokens of the row that are this sequence's; > T only with seq_lens

  /// Position, counted from 1, of the token with index `token` in this sequence. Padded positions are not counted; where
  /// the Padding policy keeps them, they all have the first position.
  [[nodiscard]] JRT_DETAIL_HD constexpr std::int64_t position(std::int64_t token) const {
    return first_position + (token > left_pad ? token - left_pad : 0) + 1;
  }

  /// Position of the last token; `first_position` if there is none.
  [[nodiscard]] JRT_DETAIL_HD constexpr std::int64_t last_position() const { return first_position + tokens - left_pad; }
};

JRT_DETAIL_HD constexpr std::int64_t sequence_count(const Sequences& sequences, std::int64_t batch) {
  return sequences.cu_seqlens != nullptr ? sequences.count : batch;
}

/// `tokens` and `encoder_tokens` are the token extents of the query and encoder views.
JRT_DETAIL_HD constexpr SequenceSpan sequence_span(const Sequences& sequences, std::int64_t b, std::int64_t tokens,
                                                   std::int64_t encoder_tokens) {
  SequenceSpan span;
  if (sequences.cu_seqlens != nullptr) {
    span.first_token = sequences.cu_seqlens[b];
    span.row_tokens = sequences.cu_seqlens[b + 1] - span.first_token;
  } else {
    span.batch_row = b;
    span.row_tokens = tokens;
  }
  span.tokens = sequences.seq_lens != nullptr ? sequences.seq_lens[b] : span.row_tokens;
  if (sequences.cu_encoder_seqlens != nullptr) {
    span.encoder_first = sequences.cu_encoder_seqlens[b];
    span.encoder_tokens = sequences.cu_encoder_seqlens[b + 1] - span.encoder_first;
  } else {
    span.encoder_row = b;
    span.encoder_tokens = encoder_tokens;
  }
  span.prefix = sequences.prefix_lens != nullptr ? sequences.prefix_lens[b] : span.encoder_tokens;
  span.left_pad = sequences.left_pads != nullptr ? sequences.left_pads[b] : 0;
  span.first_position = sequences.first_positions != nullptr ? sequences.first_positions[b] : 0;
  return span;
}

JRT_DETAIL_HD constexpr std::int64_t clamped(std::int64_t value, std::int64_t minimum, std::int64_t maximum) {
  return value < minimum ? minimum : (value > maximum ? maximum : value);
}

/// The span clamped to the views: a backend whose arrays are in device memory cannot reject bad entries before the launch,
/// but must not access memory outside the caller's tensors. Valid spans are unchanged.
JRT_DETAIL_HD constexpr SequenceSpan within_views(SequenceSpan span, std::int64_t tokens, std::int64_t encoder_tokens) {
  span.first_token = clamped(span.first_token, 0, tokens);
  span.row_tokens = clamped(span.row_tokens, 0, tokens - span.first_token);
  span.tokens = clamped(span.tokens, 0, span.row_tokens);
  span.encoder_first = clamped(span.encoder_first, 0, encoder_tokens);
  span.encoder_tokens = clamped(span.encoder_tokens, 0, encoder_tokens - span.encoder_first);
  span.prefix = clamped(span.prefix, 0, span.encoder_tokens);
  span.left_pad = clamped(span.left_pad, 0, span.tokens > span.prefix ? span.tokens : span.prefix);
  return span;
}

}  // namespace detail

}  // namespace jrt
