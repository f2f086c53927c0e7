// SPDX-License-Identifier: Apache-2.0
// One case per documented error of the backward pass of window attention, and of what it needs of the prefill: a clear
// sentence with the argument and both values, and nothing written.
#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <jrt/backward.hpp>
#include <jrt/cpu.hpp>
#include <jrt/mixer/window_attention.hpp>
#include <string>
#include <utility>
#include <vector>

namespace jrt::test {
namespace {

struct Config : SlidingWindowAttention<float, 4, 2> {
  static constexpr int value_dim = 8;
};
using Format = StateFormatOf<Config>;
using B = BackwardArgs<Config>;

constexpr std::int64_t batch = 2;
constexpr std::int64_t tokens = 6;
constexpr std::int64_t heads = 2;

/// A good call with room for everything; tests spoil one thing.
struct Fixture {
  std::vector<float> q = std::vector<float>(batch * tokens * heads * 4, 0.5F);
  std::vector<float> v = std::vector<float>(batch * tokens * heads * 8, 0.5F);
  std::vector<float> sums = std::vector<float>(batch * tokens * heads + 1, 1.0F);
  std::vector<float> dq = std::vector<float>(batch * tokens * heads * 4, 7.0F);
  std::vector<float> dk = std::vector<float>(batch * tokens * heads * 4, 7.0F);
  std::vector<float> dv = std::vector<float>(batch * tokens * heads * 8, 7.0F);
  std::vector<float> states = std::vector<float>(static_cast<std::size_t>(batch * heads * Format::head_elements));
  std::vector<std::int32_t> list{0, 0, 0};
  std::vector<std::byte> workspace = std::vector<std::byte>(1 << 20);

  auto args() {
    constexpr TensorShape narrow{batch, tokens, heads, 4};
    constexpr TensorShape wide{batch, tokens, heads, 8};
    B args;
    args.query = view_bthd<const float>(q.data(), narrow);
    args.key = view_bthd<const float>(q.data(), narrow);
    args.value = view_bthd<const float>(v.data(), wide);
    args.output = view_bthd<const float>(v.data(), wide);
    args.log_sum_exp = view_bthd<const float>(sums.data(), {batch, tokens, heads, 1});
    args.output_gradient = view_bthd<const float>(v.data(), wide);
    args.query_gradient = view_bthd(dq.data(), narrow);
    args.key_gradient = view_bthd(dk.data(), narrow);
    args.value_gradient = view_bthd(dv.data(), wide);
    return args;
  }

  static bool sevens(const std::vector<float>& numbers) { return numbers == std::vector<float>(numbers.size(), 7.0F); }
  [[nodiscard]] bool untouched() const { return sevens(dq) && sevens(dk) && sevens(dv); }

  void refuses(const Status& status, const std::string& part) const {
    INFO(std::string(status.message()));
    CHECK(status.code() == StatusCode::invalid_argument);
    CHECK(status.message().find("backward: ") == 0);
    CHECK(status.message().find(part) != std::string_view::npos);
    CHECK(untouched());
  }
};

template <class Spoil>
void refuses(const std::string& part, const Spoil& spoil) {
  CAPTURE(part);
  Fixture fixture;
  B args = fixture.args();
  spoil(fixture, args);
  fixture.refuses(backward(args, {fixture.workspace.data(), fixture.workspace.size()}, Cpu{}), part);
  // The overload with a workspace of its own says the same.
  fixture.refuses(backward(args, Cpu{}), part);
}

TEST_CASE("the good call is good, and so is one without gradients") {
  Fixture fixture;
  B args = fixture.args();
  args.query_gradient = {};
  args.key_gradient = {};
  args.value_gradient = {};
  CHECK(backward(args, Cpu{}).message() == "");
  CHECK(fixture.untouched());
  CHECK(backward(fixture.args(), Cpu{}).message() == "");
  CHECK_FALSE(fixture.untouched());
}

TEST_CASE("pointers, extents and strides of what is read") {
  using F = Fixture;
  refuses("'query' is null", [](F&, B& a) { a.query.data = nullptr; });
  refuses("'key' is null", [](F&, B& a) { a.key.data = nullptr; });
  refuses("'value' is null", [](F&, B& a) { a.value.data = nullptr; });
  refuses("'output' is null", [](F&, B& a) { a.output.data = nullptr; });
  refuses("'log_sum_exp' is null", [](F&, B& a) { a.log_sum_exp.data = nullptr; });
  refuses("'output_gradient' is null", [](F&, B& a) { a.output_gradient.data = nullptr; });
  refuses("'log_sum_exp' points 1 bytes past an aligned address, but its alignment is 4", [](F&, B& a) {
    a.log_sum_exp.data = reinterpret_cast<const float*>(reinterpret_cast<const char*>(a.log_sum_exp.data) + 1);
  });
  refuses("'query' has dim = 5, but the operator's is 4", [](F&, B& a) { a.query.dim = 5; });
  refuses("'key' has dim = 8, but the operator's is 4", [](F&, B& a) { a.key.dim = 8; });
  refuses("'value' has dim = 7, but the operator's is 8", [](F&, B& a) { a.value.dim = 7; });
  refuses("'output' has dim = 4, but the operator's is 8", [](F&, B& a) { a.output.dim = 4; });
  refuses("'log_sum_exp' has dim = 8, but the operator's is 1", [](F&, B& a) { a.log_sum_exp.dim = 8; });
  refuses("'output_gradient' has dim = 4, but the operator's is 8", [](F&, B& a) { a.output_gradient.dim = 4; });
  refuses("'query' has tokens = -1, but must be at least 0", [](F&, B& a) { a.query.tokens = -1; });
  refuses("'key' has tokens = 5, but query's is 6", [](F&, B& a) { a.key.tokens = 5; });
  refuses("'value' has batch = 1, but query's is 2", [](F&, B& a) { a.value.batch = 1; });
  refuses("'output' has tokens = 4, but query's is 6", [](F&, B& a) { a.output.tokens = 4; });
  refuses("'log_sum_exp' has tokens = 4, but query's is 6", [](F&, B& a) { a.log_sum_exp.tokens = 4; });
  refuses("'output_gradient' has batch = 1, but query's is 2", [](F&, B& a) { a.output_gradient.batch = 1; });
  refuses("'value' has heads = 1, but key's is 2", [](F&, B& a) { a.value.heads = 1; });
  refuses("'output' has heads = 1, but query's is 2", [](F&, B& a) { a.output.heads = 1; });
  refuses("'log_sum_exp' has heads = 1, but query's is 2", [](F&, B& a) { a.log_sum_exp.heads = 1; });
  refuses("'output_gradient' has heads = 4, but query's is 2", [](F&, B& a) { a.output_gradient.heads = 4; });
  refuses("'key' has heads = 0, but must be at least 1", [](F&, B& a) { a.key.heads = 0; });
  refuses("'query' has heads = 3, but must be a multiple of the heads of 'key', which is 2", [](F&, B& a) {
    a.query.heads = 3;
    a.output.heads = 3;
    a.log_sum_exp.heads = 3;
    a.output_gradient.heads = 3;
  });
  refuses("'key' has token_stride = -16, but must be at least 0", [](F&, B& a) { a.key.token_stride = -16; });
}

TEST_CASE("what is required and left out is named") {
  using F = Fixture;
  refuses("'query' is missing: it has dim = 0", [](F&, B& a) { a.query = {}; });
  refuses("'key' is missing: it has dim = 0", [](F&, B& a) { a.key = {}; });
  refuses("'value' is missing: it has dim = 0", [](F&, B& a) { a.value = {}; });
  refuses("'output' is missing: it has dim = 0", [](F&, B& a) { a.output = {}; });
  refuses("'log_sum_exp' is missing: it has dim = 0", [](F&, B& a) { a.log_sum_exp = {}; });
  refuses("'output_gradient' is missing: it has dim = 0", [](F&, B& a) { a.output_gradient = {}; });
}

TEST_CASE("gradients") {
  using F = Fixture;
  refuses("'query_gradient' is null", [](F&, B& a) { a.query_gradient.data = nullptr; });
  refuses("'key_gradient' is null", [](F&, B& a) { a.key_gradient.data = nullptr; });
  refuses("'value_gradient' is null", [](F&, B& a) { a.value_gradient.data = nullptr; });
  refuses("'query_gradient' has dim = 8, but the operator's is 4", [](F&, B& a) { a.query_gradient.dim = 8; });
  refuses("'key_gradient' has dim = 8, but the operator's is 4", [](F&, B& a) { a.key_gradient.dim = 8; });
  refuses("'value_gradient' has dim = 4, but the operator's is 8", [](F&, B& a) { a.value_gradient.dim = 4; });
  refuses("'query_gradient' has tokens = 5, but query's is 6", [](F&, B& a) { a.query_gradient.tokens = 5; });
  refuses("'key_gradient' has batch = 1, but query's is 2", [](F&, B& a) { a.key_gradient.batch = 1; });
  refuses("'query_gradient' has heads = 1, but query's is 2", [](F&, B& a) { a.query_gradient.heads = 1; });
  refuses("'value_gradient' has heads = 1, but key's is 2", [](F&, B& a) { a.value_gradient.heads = 1; });
  refuses("'query_gradient' has token_stride = 3, but must be at least 4",
          [](F&, B& a) { a.query_gradient.token_stride = 3; });
  refuses("'key_gradient' has head_stride = 0, but must be at least 4", [](F&, B& a) { a.key_gradient.head_stride = 0; });
  refuses("'value_gradient' has batch_stride = 95, but must be at least 96",
          [](F&, B& a) { a.value_gradient.batch_stride = 95; });
}

TEST_CASE("a cache is refused, with what to do") {
  refuses("'initial_state' is given, but gradients through a window's cache are not supported. Leave it out",
          [](Fixture& f, B& a) { a.initial_state = {view_pool<Format>(f.states.data(), batch, heads)}; });
  refuses("'initial_state' is given", [](Fixture& f, B& a) { a.initial_state.slots = f.list.data(); });
}

TEST_CASE("the scale, sequences and the workspace") {
  using F = Fixture;
  refuses("'scale' is nan, but must be a finite number", [](F&, B& a) { a.scale = std::nan(""); });
  refuses("'scale' is inf, but must be a finite number", [](F&, B& a) { a.scale = INFINITY; });
  refuses("'sequences.max_tokens' has value = -1, but must be at least 0", [](F&, B& a) { a.sequences.max_tokens = -1; });
  refuses("'sequences.seq_lens[1]' is 7, but must be from 0 to 6", [](F& f, B& a) {
    f.list = {6, 7};
    a.sequences.seq_lens = f.list.data();
  });
  refuses("'sequences.left_pads[0]' is 7, but must be from 0 to 6", [](F& f, B& a) {
    f.list = {7, 0};
    a.sequences.left_pads = f.list.data();
  });
  refuses("'sequences.cu_seqlens' is null", [](F&, B& a) { a.sequences.count = 2; });
  refuses("'query or key' has batch = 2, but the batch of packed sequences is 1", [](F& f, B& a) {
    a.sequences.count = 2;
    a.sequences.cu_seqlens = f.list.data();
  });
  Fixture fixture;
  const std::size_t bytes = backward_workspace_bytes(fixture.args(), Cpu{});
  REQUIRE(bytes > 0);
  fixture.refuses(backward(fixture.args(), {fixture.workspace.data(), bytes - 1}, Cpu{}),
                  "'workspace' has bytes = " + std::to_string(bytes - 1) + ", but the call needs " + std::to_string(bytes));
  fixture.refuses(backward(fixture.args(), {nullptr, bytes}, Cpu{}), "'workspace' is null");
}

TEST_CASE("prefill: log_sum_exp") {
  const auto prefill_refuses = [](const std::string& part, const auto& spoil) {
    CAPTURE(part);
    Fixture fixture;
    fixture.sums.assign(fixture.sums.size(), 7.0F);
    const B from = fixture.args();
    PrefillArgs<Config> args;
    args.query = from.query;
    args.key = from.key;
    args.value = from.value;
    args.output = fixture.args().value_gradient;
    args.log_sum_exp = view_bthd(fixture.sums.data(), {batch, tokens, heads, 1});
    spoil(args);
    const Status status = prefill(args, Cpu{});
    INFO(std::string(status.message()));
    CHECK(status.code() == StatusCode::invalid_argument);
    CHECK(status.message().find(part) != std::string_view::npos);
    CHECK(fixture.untouched());
    CHECK(Fixture::sevens(fixture.sums));
  };
  using P = PrefillArgs<Config>;
  prefill_refuses("prefill: argument 'log_sum_exp' is null", [](P& a) { a.log_sum_exp.data = nullptr; });
  prefill_refuses("'log_sum_exp' has dim = 2, but the operator's is 1", [](P& a) { a.log_sum_exp.dim = 2; });
  prefill_refuses("'log_sum_exp' has tokens = 5, but query's is 6", [](P& a) { a.log_sum_exp.tokens = 5; });
  prefill_refuses("'log_sum_exp' has heads = 1, but query's is 2", [](P& a) { a.log_sum_exp.heads = 1; });
  prefill_refuses("'log_sum_exp' has token_stride = 0, but must be at least 1",
                  [](P& a) { a.log_sum_exp.token_stride = 0; });
}

}  // namespace
}  // namespace jrt::test
