// SPDX-License-Identifier: Apache-2.0
// JSON as Python writes it; what JSON itself must be is held by the tests of safetensors files.
#include "support/strict_json.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

namespace jrt_lm::test {
namespace {

using nlohmann::json;

std::string error_of(const std::string& text) {
  try {
    static_cast<void>(support::parse_python_json("c.json: the text", text));
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("special numbers are numbers, and words in strings stay") {
  const json value = support::parse_python_json(
      "c", R"({"NaN": [NaN, 1, -Infinity, 2.5, Infinity, -3], "quoted \" NaN, Infinity": "-Infinity \\", "last":NaN})");
  const json& list = value.at("NaN");
  REQUIRE(list.size() == 6);
  CHECK(std::isnan(list[0].get<double>()));
  CHECK(list[1] == 1);
  CHECK(list[1].is_number_integer());
  CHECK(list[2].get<double>() == -INFINITY);
  CHECK(list[3] == 2.5);
  CHECK(list[4].get<double>() == INFINITY);
  CHECK(list[5] == -3);
  CHECK(value.at("quoted \" NaN, Infinity") == "-Infinity \\");
  CHECK(std::isnan(value.at("last").get<double>()));
  CHECK(std::isnan(support::parse_python_json("c", "NaN").get<double>()));
  CHECK(support::parse_python_json("c", "0.0") == 0.0);
}

TEST_CASE("messages show them as they stand") {
  CHECK(support::brief(support::parse_python_json("c", "NaN")) == "NaN");
  CHECK(support::brief(support::parse_python_json("c", "Infinity")) == "Infinity");
  CHECK(support::brief(support::parse_python_json("c", "-Infinity")) == "-Infinity");
}

TEST_CASE("mistakes keep their places") {
  CHECK(error_of(R"({"a": NaN, "b": -Infinity, })").starts_with("c.json: the text is not JSON at byte 28: "));
  CHECK(error_of(R"({"a": NaN "b")").starts_with("c.json: the text is not JSON at byte 13: "));
  for (const char* const wrong : {"nan", "NaN5", "+Infinity", "-NaN", "Inf", "--Infinity", "Infinity.0", "1NaN",
                                  "[NaN NaN]", "{NaN: 1}", "NaN,", "\"NaN", "Na", "-", "\"\\"}) {
    CAPTURE(wrong);
    CHECK(error_of(wrong).starts_with("c.json: the text is not JSON at byte "));
  }
}

TEST_CASE("where JSON is meant, they are none") {
  for (const char* const special : {"NaN", "Infinity", "-Infinity"}) {
    CHECK_THROWS_AS(static_cast<void>(support::parse_strict_json("c", special)), std::runtime_error);
  }
}

TEST_CASE("byte order marks") {
  CHECK(support::parse_strict_json("c", "\xEF\xBB\xBF{}") == json::object());
  CHECK(support::parse_python_json("c", "\xEF\xBB\xBF[NaN]").size() == 1);
  CHECK(error_of(std::string("\xFF\xFE{\0}\0", 6)) ==
        "c.json: the text begins with the byte order mark of UTF-16 or UTF-32, but must be UTF-8");
  CHECK(error_of("\xEF\xBB\xBFx").starts_with("c.json: the text is not JSON at byte 4: "));
}

}  // namespace
}  // namespace jrt_lm::test
