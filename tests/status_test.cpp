// SPDX-License-Identifier: Apache-2.0
#include <jrt/status.hpp>

#include <doctest/doctest.h>

#include <string>

namespace jrt {
namespace {

TEST_CASE("success has no message, failure has the formatted one") {
  const Status good;
  CHECK(good.ok());
  CHECK(static_cast<bool>(good));
  CHECK(good.message().empty());
  const Status bad = Status::error(StatusCode::invalid_argument, "'%s' is %d, but must be %d", "x", 3, 4);
  CHECK_FALSE(bad.ok());
  CHECK(bad.code() == StatusCode::invalid_argument);
  CHECK(bad.message() == "'x' is 3, but must be 4");
}

TEST_CASE("a message that is too long is cut, not overrun") {
  const std::string text(1000, 'x');
  const Status status = Status::error(StatusCode::corrupt_data, "%s", text.c_str());
  CHECK(status.message().size() < 256);
  CHECK(status.message().find_first_not_of('x') == std::string_view::npos);
}

}  // namespace
}  // namespace jrt
