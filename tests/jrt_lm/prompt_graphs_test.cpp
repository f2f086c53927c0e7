// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/prompt_graphs.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <set>
#include <string>

namespace jrt_lm::test {
namespace {

TEST_CASE("shapes hold their prompts, waste little, and are few") {
  std::set<PromptShape> shapes;
  for (std::int64_t tokens = 1; tokens <= short_prompt_tokens; ++tokens) {
    for (const std::int64_t prefix : {std::int64_t{0}, std::int64_t{1}, tokens / 2, tokens}) {
      const PromptShape shape = short_prompt_shape(tokens, prefix);
      REQUIRE(shape.rows >= tokens);
      REQUIRE(shape.rows - tokens < std::max<std::int64_t>(16, tokens / 8 + 1));
      REQUIRE(shape.encoder_rows >= prefix);
      REQUIRE(shape.encoder_rows <= shape.rows);
      REQUIRE((shape.encoder_rows == 0) == (prefix == 0));
      shapes.insert(shape);
    }
  }
  CHECK(shapes.size() < 200);
  CHECK(short_prompt_shape(short_prompt_tokens, 0).rows == short_prompt_tokens);
}

/// A graph is its shape's rows; what was done is written down.
struct Recorder {
  PromptGraphs<std::function<void()>> graphs{};
  std::string done{};

  void read(std::int64_t rows) {
    const auto note = [this](const char* what) { done += what; };
    graphs.read(
        {rows, 0}, [&] { note("run "); },
        [&]() -> std::function<void()> {
          note("capture ");
          return [this, rows] { done += std::to_string(rows) + " "; };
        },
        [](const std::function<void()>& graph) { graph(); });
  }
};

TEST_CASE("the first prompt of a shape runs, the second is captured, others are replayed") {
  Recorder recorder;
  for (const std::int64_t rows : {16, 16, 16, 32, 16, 32}) {
    recorder.read(rows);
  }
  CHECK(recorder.done == "run capture 16 16 run 16 capture 32 ");
  recorder.done.clear();
  recorder.graphs.clear();
  recorder.read(16);
  CHECK(recorder.done == "run ");
}

TEST_CASE("the shape that was not used for longest is forgotten") {
  Recorder recorder;
  const auto most = static_cast<std::int64_t>(PromptGraphs<std::function<void()>>::most);
  for (std::int64_t i = 1; i <= most; ++i) {
    recorder.read(16 * i);
  }
  recorder.read(16);  // the first is used again
  recorder.read(16 * (most + 1));
  recorder.done.clear();
  recorder.read(16);
  CHECK(recorder.done == "16 ");
  recorder.read(32);
  CHECK(recorder.done == "16 run ");
}

}  // namespace
}  // namespace jrt_lm::test
