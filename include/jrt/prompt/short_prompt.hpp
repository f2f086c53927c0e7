// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "jrt/status.hpp"

/// Prompts shorter than the encoder region that a JRT-RNN was trained with (arXiv 2407.05483, section 4.2). For a prompt of
/// l < M tokens there are three options:
///
///  - `pad_left`: padding in front of the prompt. With `DropPadding` it has no effect: the prompt alone with M = l gives
///    the same result, at no cost. The authors evaluated with `ZeroKeyPadding`.
///  - `pad_by_reading_twice`: the prompt itself fills the missing positions. Costs a prefill of M tokens.
///  - `IterativeEncoding`: the encoder region grows with the answer. Costs a prefill of all tokens for each new one, up to
///    M.
namespace jrt {

/// Tokens of a prompt that is padded to the encoder region's length; longer prompts are not padded.
constexpr std::int64_t padded_prompt_tokens(std::int64_t prompt_tokens, std::int64_t encoder_tokens) {
  return std::max(prompt_tokens, encoder_tokens);
}

namespace detail {

inline Status check_padded_prompt(const char* operation, std::int64_t prompt_tokens, std::int64_t padded_tokens) {
  if (prompt_tokens == 0) {
    return Status::error(StatusCode::invalid_argument, "%s: argument 'prompt.size()' is 0, but must be at least 1.",
                         operation);
  }
  if (padded_tokens < prompt_tokens) {
    return Status::error(StatusCode::invalid_argument,
                         "%s: argument 'padded.size()' is %lld, but must be at least %lld (the prompt's tokens).",
                         operation, static_cast<long long>(padded_tokens), static_cast<long long>(prompt_tokens));
  }
  return {};
}

}  // namespace detail

/// `padded` becomes `pad_token` … `pad_token`, prompt. `padded.size() - prompt.size()` is the value for
/// `Sequences::left_pads`. Errors: `invalid_argument`, before anything is written: an empty prompt, or a `padded` that is
/// shorter than the prompt.
inline Status pad_left(std::span<const std::int32_t> prompt, std::int32_t pad_token, std::span<std::int32_t> padded) {
  const Status status = detail::check_padded_prompt("pad_left", std::ssize(prompt), std::ssize(padded));
  if (status.ok()) {
    const std::size_t pads = padded.size() - prompt.size();
    for (std::size_t i = 0; i < padded.size(); ++i) {
      padded[i] = i < pads ? pad_token : prompt[i - pads];
    }
  }
  return status;
}

/// `padded` becomes the end of prompt, prompt, …, prompt: the whole prompt once, and in front of it as much of its
/// repetition as there is room for. Errors as for `pad_left`.
inline Status pad_by_reading_twice(std::span<const std::int32_t> prompt, std::span<std::int32_t> padded) {
  const Status status = detail::check_padded_prompt("pad_by_reading_twice", std::ssize(prompt), std::ssize(padded));
  if (status.ok()) {
    for (std::size_t from_end = 0; from_end < padded.size(); ++from_end) {
      padded[padded.size() - 1 - from_end] = prompt[prompt.size() - 1 - from_end % prompt.size()];
    }
  }
  return status;
}

/// The encoder region grows with the sequence until it has the length that the model was trained with.
struct IterativeEncoding {
  std::int64_t encoder_tokens = 0;  ///< M

  /// Whether a sequence that has grown to `tokens` tokens is prefilled anew as a whole; otherwise its newest token is a
  /// decode step.
  [[nodiscard]] constexpr bool encodes_again(std::int64_t tokens) const { return tokens <= encoder_tokens; }
  /// The prefix length of a sequence of `tokens` tokens that is prefilled as a whole.
  [[nodiscard]] constexpr std::int64_t prefix(std::int64_t tokens) const { return std::min(tokens, encoder_tokens); }
};

}  // namespace jrt
