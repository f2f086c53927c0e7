// SPDX-License-Identifier: Apache-2.0
// Guesses of what follows a text, against a search through all of it.
#include "jrt_lm/draft.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace jrt_lm::test {
namespace {

using Tokens = std::vector<std::int32_t>;

/// The text goes on as after the last place before its end where its last `length` tokens stand, for the greatest length.
Tokens expected_draft(const Tokens& text, std::size_t count) {
  for (std::size_t length = std::min(PromptLookup::longest_match, text.size()); length > 0; --length) {
    for (std::size_t next = text.size() - 1; next >= length; --next) {
      if (std::equal(text.end() - static_cast<std::ptrdiff_t>(length), text.end(),
                     text.begin() + static_cast<std::ptrdiff_t>(next - length))) {
        Tokens all = text;
        for (std::size_t i = 0; i < count; ++i) {
          all.push_back(all[next + i]);
        }
        return {all.end() - static_cast<std::ptrdiff_t>(count), all.end()};
      }
    }
  }
  return {};
}

TEST_CASE("a draft is what followed the longest of the text's ends, where it stood last") {
  CHECK(PromptLookup(Tokens{1, 2, 3, 9, 1, 2, 4, 8, 1, 2}).draft(2) == Tokens{4, 8});        // the later of two places
  CHECK(PromptLookup(Tokens{5, 1, 2, 3, 6, 1, 2, 4, 5, 1, 2}).draft(3) == Tokens{3, 6, 1});  // three tokens before two
  CHECK(PromptLookup(Tokens{7, 7}).draft(4) == Tokens{7, 7, 7, 7});                          // goes on with itself
  CHECK(PromptLookup(Tokens{1, 2, 3, 1, 2, 3, 1}).draft(7) == Tokens{2, 3, 1, 2, 3, 1, 2});  // likewise
  CHECK(PromptLookup(Tokens{1, 2, 3}).draft(3).empty());
  CHECK(PromptLookup(Tokens{1}).draft(3).empty());
  CHECK(PromptLookup(Tokens{}).draft(3).empty());
  CHECK(PromptLookup(Tokens{4, 4}).draft(0).empty());
}

TEST_CASE("drafts of texts that grow are those of a search") {
  std::mt19937 generator(3);
  for (const int alphabet : {1, 2, 3, 20, 1000}) {
    Tokens text;
    PromptLookup lookup;
    for (int i = 0; i < 200; ++i) {
      CHECK(lookup.draft(5) == expected_draft(text, 5));
      CHECK(PromptLookup(text).draft(1) == expected_draft(text, 1));
      text.push_back(static_cast<std::int32_t>(generator() % static_cast<unsigned>(alphabet)));
      lookup.append(text.back());
    }
  }
}

TEST_CASE("tokens count up to the first that is not the likeliest") {
  CHECK(accepted_tokens(Tokens{5}, Tokens{6}) == 1);
  CHECK(accepted_tokens(Tokens{5, 6, 7, 8}, Tokens{6, 7, 8, 9}) == 4);
  CHECK(accepted_tokens(Tokens{5, 6, 7, 8}, Tokens{6, 7, 9, 9}) == 3);
  CHECK(accepted_tokens(Tokens{5, 6, 7, 8}, Tokens{1, 7, 8, 9}) == 1);   // those behind a wrong guess do not count
  CHECK(accepted_tokens(Tokens{5, 6, 7, 8}, Tokens{6, -1, 8, 9}) == 2);  // nor those behind what is no token
}

}  // namespace
}  // namespace jrt_lm::test
