// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace jrt_lm {

/// GPT-2's byte-level byte-pair encoding. A text is cut into pieces by GPT-2's pattern (words, numbers, punctuation, white
/// space); a piece starts as one token for each byte, and the two neighbours whose merge stands first in the list of merges
/// become one token, the leftmost ones first, until no two neighbours can be merged. No prefix space is added, and text is
/// never read as a special token: "<|endoftext|>" is encoded as its letters.
///
/// Every byte has a token, so that every text can be encoded and `decode(encode(text)) == text`, invalid UTF-8 included: a
/// byte that belongs to no valid character becomes the token of that byte alone, and what lies before and after it is
/// encoded as a text of its own.
///
/// Copies share the vocabulary. All functions may be called from several threads at the same time.
class Tokenizer {
 public:
  /// No token has a higher number: no model has a larger vocabulary.
  static constexpr std::int64_t max_numbers = std::int64_t{1} << 24;

  /// Reads `vocab.json`, an object with the number of each token, and `merges.txt`, a line "left right" for each merge,
  /// after an optional line "#version: 0.2". Numbers may leave gaps. Tokens are written in GPT-2's alphabet of 256
  /// characters, one for each byte; a token with any other character stands for its own text and can only be decoded. A
  /// byte order mark at the beginning of a file is passed over.
  ///
  /// Throws std::runtime_error, one line with the file and what is wrong: a file cannot be read or is not of this form, a
  /// number is out of range or given twice, a byte has no token, a merge is given twice or has a token that the vocabulary
  /// lacks.
  Tokenizer(const std::string& vocab_path, const std::string& merges_path);

  /// The same from the files' texts; `vocab_name` and `merges_name` stand for the files in messages.
  static Tokenizer from_text(const std::string& vocab_name, std::string_view vocab, const std::string& merges_name,
                             std::string_view merges);

  /// O(n log n) for n bytes, also if they are a single word.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text) const;

  /// The bytes of the tokens, one after another. A character may be spread over several tokens, so that the text of some
  /// of a text's tokens need not be valid UTF-8. A number that no token has (one of a gap, or of a model whose vocabulary
  /// is larger) becomes "<|50260|>". Throws std::runtime_error for a negative number.
  [[nodiscard]] std::string decode(std::span<const std::int32_t> tokens) const;

  /// One more than the highest number of a token.
  [[nodiscard]] std::int64_t size() const;

 private:
  struct Parts;
  explicit Tokenizer(std::shared_ptr<const Parts> parts);
  std::shared_ptr<const Parts> parts_;
};

}  // namespace jrt_lm
