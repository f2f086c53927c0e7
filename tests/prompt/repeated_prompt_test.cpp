// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <cstdint>
#include <jrt/prompt/repeated_prompt.hpp>
#include <string>
#include <vector>

namespace jrt::test {
namespace {

using Tokens = std::vector<std::int32_t>;

Tokens written(const RepeatedPrompt& prompt) {
  Tokens tokens(static_cast<std::size_t>(repeated_prompt_tokens(prompt)), -7);
  const Status status = write_repeated_prompt(prompt, tokens);
  REQUIRE_MESSAGE(status.ok(), status.c_str());
  return tokens;
}

std::string error_of(const RepeatedPrompt& prompt, std::size_t room) {
  Tokens tokens(room, -7);
  const Status status = write_repeated_prompt(prompt, tokens);
  CHECK(status.code() == StatusCode::invalid_argument);
  CHECK(tokens == Tokens(room, -7));
  return status.c_str();
}

TEST_CASE("the context n times, separators between, the query once") {
  const Tokens context{1, 2, 3}, query{8, 9}, separator{5};
  CHECK(written({context, query}) == Tokens{1, 2, 3, 1, 2, 3, 8, 9});
  CHECK(written({context, query, separator}) == Tokens{1, 2, 3, 5, 1, 2, 3, 8, 9});
  CHECK(written({context, query, separator, 3}) == Tokens{1, 2, 3, 5, 1, 2, 3, 5, 1, 2, 3, 8, 9});
  CHECK(written({context, query, separator, 1}) == Tokens{1, 2, 3, 8, 9});
  CHECK(written({.context = context, .repetitions = 2}) == Tokens{1, 2, 3, 1, 2, 3});
}

TEST_CASE("pieces follow one another and are the whole prompt") {
  const Tokens context{1, 2, 3}, query{8, 9}, separator{5, 6};
  for (const Tokens& q : {query, Tokens{}}) {
    for (const Tokens& s : {separator, Tokens{}}) {
      for (std::int64_t n = 1; n <= 4; ++n) {
        const RepeatedPrompt prompt{context, q, s, n};
        const Tokens whole = written(prompt);
        REQUIRE(repeated_prompt_pieces(prompt) == n + (q.empty() ? 0 : 1));
        std::int64_t next = 0;
        for (std::int64_t i = 0; i < repeated_prompt_pieces(prompt); ++i) {
          const PromptPiece piece = repeated_prompt_piece(prompt, i);
          CHECK(piece.first == next);
          next += piece.count;
          const Tokens tokens(whole.begin() + piece.first, whole.begin() + next);
          Tokens expected = i == n ? q : context;
          if (i > 0 && i < n) {
            expected.insert(expected.begin(), s.begin(), s.end());
          }
          CHECK(tokens == expected);
        }
        CHECK(next == repeated_prompt_tokens(prompt));
      }
    }
  }
}

TEST_CASE("errors name the argument and both values, and write nothing") {
  const Tokens context{1, 2, 3}, query{8, 9};
  CHECK(error_of({{}, query}, 2) == "RepeatedPrompt: 'context.size()' is 0, but must be at least 1.");
  CHECK(error_of({context, query, {}, 0}, 2) == "RepeatedPrompt: 'repetitions' is 0, but must be at least 1.");
  CHECK(error_of({context, query, {}, INT64_MAX}, 2) ==
        "RepeatedPrompt: 'repetitions' is 9223372036854775807, but must be so few that all tokens are at "
        "most 2147483647.");
  CHECK(error_of({context, query}, 7) ==
        "write_repeated_prompt: argument 'tokens.size()' is 7, but must be 8 (the whole prompt's).");
}

}  // namespace
}  // namespace jrt::test
