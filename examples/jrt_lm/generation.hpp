// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "jrt_lm/language_model.hpp"
#include "jrt_lm/sampler.hpp"

namespace jrt_lm {

/// What is done with a prompt of fewer tokens than the encoder region that the model was trained with
/// (jrt/prompt/short_prompt.hpp).
enum class ShortPromptStrategy {
  shorten,     ///< the encoder region is the prompt: left padding whose positions are dropped. Costs nothing
  left_pad,    ///< the authors' left padding: padded positions are read, and linear attention sees their keys as 0
  read_twice,  ///< padding with the prompt itself
  iterative,   ///< the encoder region grows with the answer, and the sequence is read anew for each token until it is full
};

const char* name_of(ShortPromptStrategy strategy);

/// Padding (`left_pad`, `read_twice`) reaches up to so many tokens: all of it is read as text is, so that an encoder region
/// that is longer by mistake would take memory and hours for a short prompt. The authors' has 1024.
inline constexpr std::int64_t max_padded_tokens = std::int64_t{1} << 20;

/// A context is shown at most so often: each time is a prefill of its own. JRT-Prompt shows it twice.
inline constexpr std::int64_t max_reads = 1024;

/// A request: context and query as jrt::RepeatedPrompt has them. Plain prompts are a context that is shown once.
struct Request {
  std::vector<std::int32_t> context;
  std::vector<std::int32_t> query{};
};

struct GenerationOptions {
  std::int64_t new_tokens = 16;
  std::int64_t encoder_tokens = 0;  ///< M; longer than a prompt, `short_prompt` applies
  ShortPromptStrategy short_prompt = ShortPromptStrategy::shorten;
  std::int32_t pad_token = 220;  ///< of left_pad: the authors' (a space of GPT-2's vocabulary)
  std::int64_t reads = 1;        ///< how often a context is shown
  std::vector<std::int32_t> separator{};
  SamplingOptions sampling{};
  std::optional<std::int32_t> stop_token{};  ///< a sequence ends with it
  /// From 2 to max_staged_tokens: where a sequence's last tokens have stood in its text before, a step takes so many
  /// tokens, the last one and guesses of those that follow (draft.hpp), and keeps those that are the likeliest. For greedy
  /// generation alone, whose tokens stay the same but for rounding. 0: steps of one token.
  std::int64_t speculate = 0;
};

/// What came out, and how long it took.
struct Generation {
  std::vector<std::vector<std::int32_t>> tokens;  ///< of each request
  std::int64_t prompt_tokens = 0;                 ///< read, of all requests: repetitions and padding included
  std::int64_t prefix_tokens = 0;                 ///< of them in encoder regions
  std::int64_t decode_rounds = 0;    ///< each of which gave a token, or some, to every sequence that had not ended
  std::int64_t decoded_tokens = 0;   ///< all but the first of each sequence
  std::int64_t drafted_tokens = 0;   ///< guesses, with `speculate`
  std::int64_t accepted_tokens = 0;  ///< those of them that were right, and so cost no step of their own
  double prefill_seconds = 0;        ///< until there are the first new tokens
  double decode_seconds = 0;         ///< of all that follows

  [[nodiscard]] double milliseconds_per_round() const {
    return decode_rounds == 0 ? 0 : decode_seconds * 1e3 / static_cast<double>(decode_rounds);
  }
  /// Of the longest sequence.
  [[nodiscard]] double milliseconds_per_token() const {
    std::size_t longest = 0;
    for (const auto& sequence : tokens) {
      longest = std::max(longest, sequence.size());
    }
    return longest < 2 ? 0 : decode_seconds * 1e3 / static_cast<double>(longest - 1);
  }
  [[nodiscard]] double decoded_per_second() const {
    return decode_seconds > 0 ? static_cast<double>(decoded_tokens) / decode_seconds : 0;
  }
};

/// Reads the requests into slots 0, 1, … and generates tokens for each. Errors are those of the model, and
/// std::invalid_argument for requests and options out of range, before anything is read. Each piece of a repeated prompt is
/// a prefill that continues the one before; an encoder region is part of the first. Logits that are not finite are a
/// std::runtime_error that says whose and after how many tokens. `progress` is told which part of all
/// prompts is read.
Generation generate(LanguageModel& model, std::span<const Request> requests, const GenerationOptions& options,
                    const Progress& progress);

}  // namespace jrt_lm
