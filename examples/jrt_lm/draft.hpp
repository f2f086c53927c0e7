// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace jrt_lm {

/// Guesses of what follows a text, by prompt lookup (Saxena, "Prompt Lookup Decoding", 2023): what followed the last time
/// that the text's last few tokens stood in it. No model is asked, and answers that repeat their prompt are guessed well:
/// those of recall, for which prompts are read twice.
///
/// An appended token costs a few look-ups, a draft likewise, however long the text is.
class PromptLookup {
 public:
  explicit PromptLookup(std::span<const std::int32_t> text = {});

  void append(std::int32_t token);

  /// The next `count` tokens of the text's most recent earlier place with the longest end of at most `longest_match`
  /// tokens. Where that place runs into the text's end, the draft goes on with itself. Empty if the last token is new.
  [[nodiscard]] std::vector<std::int32_t> draft(std::int64_t count) const;

  static constexpr std::size_t longest_match = 3;

 private:
  using Gram = std::array<std::int32_t, longest_match>;
  struct Hash {
    std::size_t operator()(const Gram& gram) const;
  };

  /// The last `length` tokens of the text, behind numbers that no token is.
  [[nodiscard]] Gram last_tokens(std::size_t length) const;

  std::vector<std::int32_t> text_;
  std::unordered_map<Gram, std::size_t, Hash> follows_;  // by tokens: where those are that followed them last
};

/// How many of a sequence's tokens in a staged step count: the first, which is no guess, and those behind it that were the
/// likeliest after the one before (Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative
/// Decoding", 2023, for greedy decoding).
std::int64_t accepted_tokens(std::span<const std::int32_t> tokens, std::span<const std::int32_t> likeliest);

}  // namespace jrt_lm
