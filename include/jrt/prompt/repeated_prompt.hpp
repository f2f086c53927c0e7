// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "jrt/status.hpp"

/// JRT-Prompt (arXiv 2407.05483, section 3): a causal model reads the context several times before it answers; from the
/// second time on its state already covers the whole context.
///
///     context, separator context, …, separator context, query
///
/// Since the model is causal, each of these pieces is a prefill from the state of the one before, and the state after a
/// piece is a checkpoint from which any number of queries may start.
namespace jrt {

/// A prompt that repeats its context; views of the caller's tokens.
struct RepeatedPrompt {
  std::span<const std::int32_t> context{};
  std::span<const std::int32_t> query{};      ///< once, at the end; may be empty
  std::span<const std::int32_t> separator{};  ///< between two repetitions; may be empty
  std::int64_t repetitions = 2;               ///< of the context, at least 1
};

/// Tokens [first, first + count) of a prompt, which are one prefill.
struct PromptPiece {
  std::int64_t first = 0;
  std::int64_t count = 0;

  friend bool operator==(const PromptPiece&, const PromptPiece&) = default;
};

/// Tokens of the whole prompt, which `check_repeated_prompt` must accept.
constexpr std::int64_t repeated_prompt_tokens(const RepeatedPrompt& prompt) {
  return prompt.repetitions * std::ssize(prompt.context) + (prompt.repetitions - 1) * std::ssize(prompt.separator) +
         std::ssize(prompt.query);
}

/// Pieces to prefill one after the other: one for each repetition, and one for the query if there is one.
constexpr std::int64_t repeated_prompt_pieces(const RepeatedPrompt& prompt) {
  return prompt.repetitions + (prompt.query.empty() ? 0 : 1);
}

/// Tokens of piece `piece`, counted from 0, in the whole prompt. A separator belongs to the repetition after it.
constexpr PromptPiece repeated_prompt_piece(const RepeatedPrompt& prompt, std::int64_t piece) {
  const std::int64_t again = std::ssize(prompt.separator) + std::ssize(prompt.context);
  if (piece == 0) {
    return {0, std::ssize(prompt.context)};
  }
  const std::int64_t first = std::ssize(prompt.context) + (piece - 1) * again;
  return {first, piece < prompt.repetitions ? again : std::ssize(prompt.query)};
}

/// Validates a prompt. Error: `invalid_argument` for an empty context, fewer than 1 repetition, or more than 2^31 − 1
/// tokens.
inline Status check_repeated_prompt(const RepeatedPrompt& prompt) {
  constexpr std::int64_t most = INT32_MAX;
  if (prompt.context.empty()) {
    return Status::error(StatusCode::invalid_argument, "RepeatedPrompt: 'context.size()' is 0, but must be at least 1.");
  }
  if (prompt.repetitions < 1) {
    return Status::error(StatusCode::invalid_argument, "RepeatedPrompt: 'repetitions' is %lld, but must be at least 1.",
                         static_cast<long long>(prompt.repetitions));
  }
  const std::int64_t again = std::ssize(prompt.separator) + std::ssize(prompt.context);
  const std::int64_t room = most - std::ssize(prompt.query) - std::ssize(prompt.context);
  if (room < 0 || prompt.repetitions - 1 > room / again) {
    return Status::error(StatusCode::invalid_argument,
                         "RepeatedPrompt: 'repetitions' is %lld, but must be so few that all tokens are at most %lld.",
                         static_cast<long long>(prompt.repetitions), static_cast<long long>(most));
  }
  return {};
}

/// Writes the whole prompt to `tokens`, which holds exactly `repeated_prompt_tokens`. O(tokens). Errors:
/// `invalid_argument`, before anything is written: those of `check_repeated_prompt`, or another size of `tokens`.
inline Status write_repeated_prompt(const RepeatedPrompt& prompt, std::span<std::int32_t> tokens) {
  if (const Status status = check_repeated_prompt(prompt); !status.ok()) {
    return status;
  }
  if (std::ssize(tokens) != repeated_prompt_tokens(prompt)) {
    return Status::error(StatusCode::invalid_argument,
                         "write_repeated_prompt: argument 'tokens.size()' is %lld, but must be %lld (the whole prompt's).",
                         static_cast<long long>(std::ssize(tokens)),
                         static_cast<long long>(repeated_prompt_tokens(prompt)));
  }
  std::int32_t* to = tokens.data();
  for (std::int64_t i = 0; i < prompt.repetitions; ++i) {
    if (i > 0) {
      to = std::copy(prompt.separator.begin(), prompt.separator.end(), to);
    }
    to = std::copy(prompt.context.begin(), prompt.context.end(), to);
  }
  std::copy(prompt.query.begin(), prompt.query.end(), to);
  return {};
}

}  // namespace jrt
