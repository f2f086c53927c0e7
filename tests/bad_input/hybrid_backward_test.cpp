// SPDX-License-Identifier: Apache-2.0
// One case per documented error of the backward pass of linear and window attention in one mixer, and of what it needs of
// the prefill: a clear sentence with the argument and both values, and nothing written.
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <jrt/backward.hpp>
#include <jrt/cpu.hpp>
#include <jrt/mixer/hybrid_attention.hpp>
#include <string>
#include <utility>
#include <vector>

namespace jrt::test {
namespace {

using Linear = PrefixLinearAttention<float, 4, 8>;
using Config = HybridAttention<Linear, WindowBeside<Linear, 2>>;
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
  std::vector<float> dk_encoder = std::vector<float>(batch * tokens * heads * 4, 7.0F);
  std::vector<float> dv_encoder = std::vector<float>(batch * tokens * heads * 8, 7.0F);
  std::vector<std::uint64_t> states =
      std::vector<std::uint64_t>(static_cast<std::size_t>(batch * heads * Format::head_elements));
  std::vector<std::int32_t> list{0, 0, 0};
  std::vector<std::byte> workspace = std::vector<std::byte>(1 << 20);

  auto args() {
    constexpr TensorShape narrow{batch, tokens, heads, 4};
    constexpr TensorShape wide{batch, tokens, heads, 8};
    B args;
    args.query = view_bthd<const float>(q.data(), narrow);
    args.key = view_bthd<const float>(q.data(), narrow);
    args.value = view_bthd<const float>(v.data(), wide);
    args.key_encoder = args.key;
    args.value_encoder = args.value;
    args.output = view_bthd<const float>(v.data(), wide);
    args.log_sum_exp = view_bthd<const float>(sums.data(), {batch, tokens, heads, 1});
    args.output_gradient = view_bthd<const float>(v.data(), wide);
    args.query_gradient = view_bthd(dq.data(), narrow);
    args.key_gradient = view_bthd(dk.data(), narrow);
    args.value_gradient = view_bthd(dv.data(), wide);
    args.key_encoder_gradient = view_bthd(dk_encoder.data(), narrow);
    args.value_encoder_gradient = view_bthd(dv_encoder.data(), wide);
    return args;
  }

  static bool sevens(const std::vector<float>& numbers) { return numbers == std::vector<float>(numbers.size(), 7.0F); }
  [[nodiscard]] bool untouched() const {
    return sevens(dq) && sevens(dk) && sevens(dv) && sevens(dk_encoder) && sevens(dv_encoder);
  }

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
  args.query_gradient = args.key_gradient = args.value_gradient = {};
  args.key_encoder_gradient = args.value_encoder_gradient = {};
  CHECK(backward(args, Cpu{}).message() == "");
  CHECK(fixture.untouched());
  CHECK(backward(fixture.args(), Cpu{}).message() == "");
  CHECK_FALSE(fixture.untouched());
}

TEST_CASE("what is read") {
  using F = Fixture;
  refuses("'query' is null", [](F&, B& a) { a.query.data = nullptr; });
  refuses("'output' is null", [](F&, B& a) { a.output.data = nullptr; });
  refuses("'log_sum_exp' is null", [](F&, B& a) { a.log_sum_exp.data = nullptr; });
  refuses("'key' has dim = 8, but the operator's is 4", [](F&, B& a) { a.key.dim = 8; });
  refuses("'log_sum_exp' has dim = 8, but the operator's is 1", [](F&, B& a) { a.log_sum_exp.dim = 8; });
  refuses("'value' has batch = 1, but query's is 2", [](F&, B& a) { a.value.batch = 1; });
  refuses("'log_sum_exp' has tokens = 4, but query's is 6", [](F&, B& a) { a.log_sum_exp.tokens = 4; });
  refuses("'output_gradient' has heads = 4, but query's is 2", [](F&, B& a) { a.output_gradient.heads = 4; });
  refuses("'key_encoder' has dim = 5, but the operator's is 4", [](F&, B& a) { a.key_encoder.dim = 5; });
  refuses("'value_encoder' has tokens = 5, but key_encoder's is 6", [](F&, B& a) { a.value_encoder.tokens = 5; });
  refuses("'key' has token_stride = -16, but must be at least 0", [](F&, B& a) { a.key.token_stride = -16; });
  refuses("'output' is missing: it has dim = 0", [](F&, B& a) { a.output = {}; });
  refuses("'log_sum_exp' is missing: it has dim = 0", [](F&, B& a) { a.log_sum_exp = {}; });
  refuses("'output_gradient' is missing: it has dim = 0", [](F&, B& a) { a.output_gradient = {}; });
}

TEST_CASE("gradients") {
  using F = Fixture;
  refuses("'query_gradient' is null", [](F&, B& a) { a.query_gradient.data = nullptr; });
  refuses("'key_gradient' has dim = 8, but the operator's is 4", [](F&, B& a) { a.key_gradient.dim = 8; });
  refuses("'value_gradient' has heads = 1, but value's is 2", [](F&, B& a) { a.value_gradient.heads = 1; });
  refuses("'key_encoder_gradient' has tokens = 5, but key_encoder's is 6",
          [](F&, B& a) { a.key_encoder_gradient.tokens = 5; });
  refuses("'value_encoder_gradient' has token_stride = 3, but must be at least 8",
          [](F&, B& a) { a.value_encoder_gradient.token_stride = 3; });
  refuses("'key_encoder_gradient' has tokens = 6, but key_encoder's is 0", [](F&, B& a) {
    a.key_encoder = {};
    a.value_encoder = {};
  });
}

TEST_CASE("a state is refused, with what to do") {
  refuses("'initial_state' is given, but gradients through a window's cache are not supported. Leave it out",
          [](Fixture& f, B& a) { a.initial_state = {view_pool<Format>(f.states.data(), batch, heads)}; });
}

TEST_CASE("sequences and the workspace") {
  using F = Fixture;
  refuses("'sequences.seq_lens[1]' is 7, but must be from 0 to 6", [](F& f, B& a) {
    f.list = {6, 7};
    a.sequences.seq_lens = f.list.data();
  });
  refuses("'sequences.prefix_lens[1]' is 7, but must be from 0 to 6", [](F& f, B& a) {
    f.list = {6, 7};
    a.sequences.prefix_lens = f.list.data();
  });
  Fixture fixture;
  const std::size_t needed = backward_workspace_bytes(fixture.args(), Cpu{});
  fixture.refuses(backward(fixture.args(), {fixture.workspace.data(), needed - 1}, Cpu{}), "workspace");
}

TEST_CASE("the prefill's log_sum_exp") {
  Fixture fixture;
  const B from = fixture.args();
  std::vector<float> y(batch * tokens * heads * 8, 7.0F);
  PrefillArgs<Config> args;
  args.query = from.query;
  args.key = from.key;
  args.value = from.value;
  args.output = view_bthd(y.data(), {batch, tokens, heads, 8});
  args.log_sum_exp = view_bthd(fixture.sums.data(), {batch, tokens, heads, 1});
  args.log_sum_exp.tokens = 4;
  const Status status = prefill(args, Cpu{});
  CHECK(status.message() == "prefill: argument 'log_sum_exp' has tokens = 4, but query's is 6.");
  CHECK(Fixture::sevens(y));
}

}  // namespace
}  // namespace jrt::test
