// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/draft.hpp"

#include <algorithm>

namespace jrt_lm {

std::size_t PromptLookup::Hash::operator()(const Gram& gram) const {
  std::uint64_t hash = 0;
  for (const std::int32_t token : gram) {
    hash = (hash ^ static_cast<std::uint32_t>(token)) * 0x9e3779b97f4a7c15U;
    hash ^= hash >> 32;
  }
  return static_cast<std::size_t>(hash);
}

PromptLookup::PromptLookup(std::span<const std::int32_t> text) {
  text_.reserve(text.size());
  for (const std::int32_t token : text) {
    append(token);
  }
}

PromptLookup::Gram PromptLookup::last_tokens(std::size_t length) const {
  Gram gram;
  gram.fill(-1);
  std::copy(text_.end() - static_cast<std::ptrdiff_t>(length), text_.end(),
            gram.end() - static_cast<std::ptrdiff_t>(length));
  return gram;
}

void PromptLookup::append(std::int32_t token) {
  for (std::size_t length = 1; length <= std::min(longest_match, text_.size()); ++length) {
    follows_[last_tokens(length)] = text_.size();
  }
  text_.push_back(token);
}

std::vector<std::int32_t> PromptLookup::draft(std::int64_t count) const {
  std::vector<std::int32_t> drafted;
  for (std::size_t length = std::min(longest_match, text_.size()); length > 0; --length) {
    const auto found = follows_.find(last_tokens(length));
    if (found != follows_.end()) {
      for (std::size_t at = found->second; std::ssize(drafted) < count; ++at) {
        drafted.push_back(at < text_.size() ? text_[at] : drafted[at - text_.size()]);
      }
      break;
    }
  }
  return drafted;
}

std::int64_t accepted_tokens(std::span<const std::int32_t> tokens, std::span<const std::int32_t> likeliest) {
  std::size_t count = 1;
  while (count < tokens.size() && tokens[count] == likeliest[count - 1]) {
    ++count;
  }
  return static_cast<std::int64_t>(count);
}

}  // namespace jrt_lm
