// SPDX-License-Identifier: Apache-2.0
// libFuzzer: whatever a tokenizer's files are, they are refused with std::runtime_error or encode and decode any text.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "jrt_lm/tokenizer.hpp"

namespace {

void require(bool condition) {
  if (!condition) {
    __builtin_trap();
  }
}

/// The text up to a line "--", which is taken off with the line.
std::string_view take_part(std::string_view& rest) {
  constexpr std::string_view between = "\n--\n";
  const std::size_t end = std::min(rest.find(between), rest.size());
  const std::string_view part = rest.substr(0, end);
  rest.remove_prefix(std::min(rest.size(), end + between.size()));
  return part;
}

void use(const jrt_lm::Tokenizer& tokenizer, std::string_view text) {
  const std::vector<std::int32_t> tokens = tokenizer.encode(text);
  require(tokens.size() <= text.size());
  for (const std::int32_t token : tokens) {
    require(token >= 0 && token < tokenizer.size());
  }
  require(tokenizer.decode(tokens) == text);
  // Numbers that need not be tokens.
  std::vector<std::int32_t> numbers{0, INT32_MAX};
  for (const char byte : text.substr(0, 64)) {
    numbers.push_back(static_cast<unsigned char>(byte) * 257);
  }
  static_cast<void>(tokenizer.decode(numbers));
}

void open(std::string_view vocab, std::string_view merges, std::string_view text) {
  try {
    use(jrt_lm::Tokenizer::from_text("vocab", vocab, "merges", merges), text);
  } catch (const std::runtime_error& error) {
    const std::string_view message(error.what());
    require(message.starts_with("vocab: ") || message.starts_with("merges: "));
    require(message.size() < 2000 && message.find('\n') == std::string_view::npos);
  }
}

/// The members of a vocabulary with the tokens of all bytes, which mutations would not find.
const std::string& byte_tokens() {
  static const std::string members = [] {
    std::string all;
    unsigned next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool prints = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
      const unsigned code = prints ? byte : next++;
      std::string character;
      if (code == '"' || code == '\\') {
        character = '\\';
      }
      if (code >= 0x80) {
        character += static_cast<char>(0xC0U | code >> 6U);
      }
      character += static_cast<char>(code < 0x80 ? code : 0x80U | (code & 0x3FU));
      all += (byte == 0 ? "\"" : ",\"") + character + "\":" + std::to_string(byte);
    }
    return all;
  }();
  return members;
}

}  // namespace

// The name is libFuzzer's. NOLINTNEXTLINE(readability-identifier-naming)
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  const std::string_view vocab = take_part(rest);
  const std::string_view merges = take_part(rest);
  open(vocab, merges, rest);
  // The same as members beside the tokens of bytes; a mark at the beginning tells whether there are any.
  open("{" + byte_tokens() + (vocab.empty() ? "" : ",") + std::string(vocab) + "}", merges, rest);
  return 0;
}
