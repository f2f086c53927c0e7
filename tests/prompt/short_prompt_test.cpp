// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <cstdint>
#include <jrt/prompt/short_prompt.hpp>
#include <string>
#include <vector>

namespace jrt::test {
namespace {

using Tokens = std::vector<std::int32_t>;

TEST_CASE("padding on the left") {
  const Tokens prompt{4, 5};
  Tokens padded(5);
  REQUIRE(pad_left(prompt, 9, padded).ok());
  CHECK(padded == Tokens{9, 9, 9, 4, 5});
  padded.resize(2);
  REQUIRE(pad_left(prompt, 9, padded).ok());
  CHECK(padded == prompt);
}

TEST_CASE("padding by reading twice ends with the whole prompt, and goes on backwards") {
  const Tokens prompt{1, 2, 3};
  const Tokens repeated{1, 2, 3, 1, 2, 3, 1, 2, 3};
  for (std::size_t size = 3; size <= 9; ++size) {
    Tokens padded(size);
    REQUIRE(pad_by_reading_twice(prompt, padded).ok());
    CHECK(padded == Tokens(repeated.end() - static_cast<std::ptrdiff_t>(size), repeated.end()));
  }
}

TEST_CASE("lengths") {
  CHECK(padded_prompt_tokens(5, 16) == 16);
  CHECK(padded_prompt_tokens(16, 16) == 16);
  CHECK(padded_prompt_tokens(20, 16) == 20);
  const IterativeEncoding encoding{16};
  CHECK(encoding.encodes_again(5));
  CHECK(encoding.encodes_again(16));
  CHECK_FALSE(encoding.encodes_again(17));
  CHECK(encoding.prefix(5) == 5);
  CHECK(encoding.prefix(20) == 16);
  CHECK_FALSE(IterativeEncoding{}.encodes_again(1));
}

TEST_CASE("errors name the argument and both values, and write nothing") {
  const Tokens prompt{1, 2, 3};
  Tokens padded{-7, -7};
  Status status = pad_left(prompt, 0, padded);
  CHECK(status.code() == StatusCode::invalid_argument);
  CHECK(std::string(status.c_str()) ==
        "pad_left: argument 'padded.size()' is 2, but must be at least 3 (the prompt's tokens).");
  status = pad_by_reading_twice({}, padded);
  CHECK(std::string(status.c_str()) == "pad_by_reading_twice: argument 'prompt.size()' is 0, but must be at least 1.");
  CHECK(padded == Tokens{-7, -7});
}

}  // namespace
}  // namespace jrt::test
