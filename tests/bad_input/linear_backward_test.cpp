// SPDX-License-Identifier: Apache-2.0
// One case per documented error of linear attention's backward pass: a clear sentence with the argument and both values,
// and nothing written.
#include <doctest/doctest.h>

#include <jrt/backward.hpp>
#include <jrt/cpu.hpp>
#include <jrt/policy/cosformer.hpp>
#include <string>
#include <vector>

namespace jrt::test {
namespace {

using Config = PrefixLinearAttention<float, 4, 8>;
using Based = BasedLinearAttention<float, 4, 8>;
struct Plain : Config {
  using Normaliser = Unnormalised;
};
struct WithPositions : Config {
  using FeatureMap = CosFormer<4>;
};

constexpr std::int64_t batch = 2;
constexpr std::int64_t tokens = 6;
constexpr std::int64_t heads = 2;

/// A good call with every gradient; tests spoil one thing.
template <class C>
struct Fixture {
  using Format = StateFormatOf<C>;
  std::vector<float> q = std::vector<float>(batch * tokens * heads * 4, 0.5F);
  std::vector<float> v = std::vector<float>(batch * tokens * heads * 8, 0.5F);
  std::vector<float> n = std::vector<float>(batch * tokens * heads, 2.0F);
  std::vector<float> initial = std::vector<float>(static_cast<std::size_t>(3 * heads * Format::head_elements), 1.0F);
  std::vector<float> final = initial;
  std::vector<float> narrow[3];
  std::vector<float> wide[2];
  std::vector<float> states = std::vector<float>(initial.size(), 7.0F);
  std::vector<std::int32_t> slots{0, 1};
  std::vector<std::int32_t> list{0, 0, 0};
  std::vector<std::byte> workspace = std::vector<std::byte>(1 << 20);

  Fixture() {
    for (auto& gradient : narrow) {
      gradient.assign(q.size(), 7.0F);
    }
    for (auto& gradient : wide) {
      gradient.assign(v.size(), 7.0F);
    }
  }

  BackwardArgs<C> args() {
    constexpr TensorShape keys{batch, tokens, heads, 4};
    constexpr TensorShape values{batch, tokens, heads, 8};
    BackwardArgs<C> args;
    args.query = view_bthd<const float>(q.data(), keys);
    args.key = args.query;
    args.value = view_bthd<const float>(v.data(), values);
    args.output_gradient = args.value;
    if (C::Normaliser::uses_denominator) {
      args.output = args.value;
      args.denominators = view_bthd<const float>(n.data(), {batch, tokens, heads, 1});
    }
    args.query_gradient = view_bthd(narrow[0].data(), keys);
    args.key_gradient = view_bthd(narrow[1].data(), keys);
    args.value_gradient = view_bthd(wide[0].data(), values);
    if (C::Mask::reads_encoder) {
      args.key_encoder = args.key.slice_tokens(0, 3);
      args.value_encoder = args.value.slice_tokens(0, 3);
      args.key_encoder_gradient = view_bthd(narrow[2].data(), keys).slice_tokens(0, 3);
      args.value_encoder_gradient = view_bthd(wide[1].data(), values).slice_tokens(0, 3);
    }
    args.final_state_gradient = {view_pool<Format>(final.data(), 3, heads), slots.data()};
    args.initial_state_gradient = {view_pool<Format>(states.data(), 3, heads), slots.data()};
    return args;
  }

  bool untouched() const {
    const auto as_before = [](const std::vector<float>& numbers) {
      return numbers == std::vector<float>(numbers.size(), 7.0F);
    };
    return as_before(narrow[0]) && as_before(narrow[1]) && as_before(narrow[2]) && as_before(wide[0]) &&
           as_before(wide[1]) && as_before(states);
  }

  void refuses(const Status& status, const std::string& part) const {
    INFO(std::string(status.message()));
    CHECK(status.code() == StatusCode::invalid_argument);
    CHECK(status.message().find(part) != std::string_view::npos);
    CHECK(status.message().find("backward: ") == 0);
    CHECK(untouched());
  }
};

template <class C = Config, class Spoil>
void refuses(const std::string& part, const Spoil& spoil) {
  CAPTURE(part);
  Fixture<C> fixture;
  auto args = fixture.args();
  spoil(fixture, args);
  fixture.refuses(backward(args, {fixture.workspace.data(), fixture.workspace.size()}, Cpu{}), part);
  // The overload with a workspace of its own says the same.
  fixture.refuses(backward(args, Cpu{}), part);
}

using F = Fixture<Config>;
using A = BackwardArgs<Config>;

TEST_CASE("the good calls are good") {
  F fixture;
  CHECK(backward(fixture.args(), Cpu{}).message() == "");
  CHECK_FALSE(fixture.untouched());
  Fixture<Plain> plain;
  CHECK(backward(plain.args(), Cpu{}).message() == "");
  Fixture<Based> based;
  CHECK(backward(based.args(), Cpu{}).message() == "");
  // Nothing asked for, nothing done.
  F none;
  auto args = none.args();
  args.query_gradient = args.key_gradient = args.value_gradient = {};
  args.key_encoder_gradient = args.value_encoder_gradient = {};
  args.initial_state_gradient = {};
  CHECK(backward(args, Cpu{}).message() == "");
  CHECK(none.untouched());
}

TEST_CASE("inputs") {
  refuses("'query' is null", [](F&, A& a) { a.query.data = nullptr; });
  refuses("'query' is missing: it has dim = 0, but the operator's is 4", [](F&, A& a) { a.query = {}; });
  refuses("'key' has tokens = 5, but query's is 6", [](F&, A& a) { a.key.tokens = 5; });
  refuses("'value' has dim = 7, but the operator's is 8", [](F&, A& a) { a.value.dim = 7; });
  refuses("'value' has heads = 1, but key's is 2", [](F&, A& a) { a.value.heads = 1; });
  refuses("'query' has heads = 3, but must be a multiple of the heads of 'key', which is 2",
          [](F&, A& a) { a.query.heads = 3; });
  refuses("'key_encoder' has heads = 1, but key's is 2", [](F&, A& a) { a.key_encoder.heads = 1; });
  refuses("'value_encoder' is missing: it has tokens = 0, but key_encoder's is 3", [](F&, A& a) { a.value_encoder = {}; });
  refuses<Based>("'key_encoder' has tokens = 6, but what a mask without encoder region reads is 0",
                 [](Fixture<Based>&, BackwardArgs<Based>& a) { a.key_encoder = a.key; });
}

TEST_CASE("what the prefill saved") {
  refuses("'output' is missing: it has dim = 0, but the operator's is 8", [](F&, A& a) { a.output = {}; });
  refuses("'output' has tokens = 4, but query's is 6", [](F&, A& a) { a.output.tokens = 4; });
  refuses("'denominators' is missing: it has dim = 0, but the operator's is 1", [](F&, A& a) { a.denominators = {}; });
  refuses("'denominators' is null", [](F&, A& a) { a.denominators.data = nullptr; });
  refuses("'denominators' has heads = 1, but query's is 2", [](F&, A& a) { a.denominators.heads = 1; });
  refuses<Plain>("'denominators' has tokens = 6, but what an operator that is not normalised has is 0",
                 [](Fixture<Plain>& f, BackwardArgs<Plain>& a) {
                   a.denominators = view_bthd<const float>(f.n.data(), {batch, tokens, heads, 1});
                 });
}

TEST_CASE("gradients that come in") {
  refuses("'output_gradient' is missing: it has dim = 0, but the operator's is 8",
          [](F&, A& a) { a.output_gradient = {}; });
  refuses("'output_gradient' is null", [](F&, A& a) { a.output_gradient.data = nullptr; });
  refuses("'output_gradient' has heads = 1, but query's is 2", [](F&, A& a) { a.output_gradient.heads = 1; });
  refuses("'final_state_gradient' has heads = 1, but the number of key/value heads is 2",
          [](F&, A& a) { a.final_state_gradient.pool.heads = 1; });
  refuses("'final_state_gradient.slots[1]' is 3, but must be from -1 to 2", [](F& f, A& a) {
    f.list = {0, 3};
    a.final_state_gradient.slots = f.list.data();
  });
}

TEST_CASE("gradients that go out") {
  refuses("'query_gradient' is null", [](F&, A& a) { a.query_gradient.data = nullptr; });
  refuses("'query_gradient' has dim = 8, but the operator's is 4", [](F&, A& a) { a.query_gradient.dim = 8; });
  refuses("'key_gradient' has heads = 1, but key's is 2", [](F&, A& a) { a.key_gradient.heads = 1; });
  refuses("'value_gradient' has tokens = 5, but value's is 6", [](F&, A& a) { a.value_gradient.tokens = 5; });
  refuses("'value_gradient' has token_stride = 7, but must be at least 8",
          [](F&, A& a) { a.value_gradient.token_stride = 7; });
  refuses("'query_gradient' has head_stride = 0, but must be at least 4",
          [](F&, A& a) { a.query_gradient.head_stride = 0; });
  refuses("'key_encoder_gradient' has tokens = 2, but key_encoder's is 3",
          [](F&, A& a) { a.key_encoder_gradient.tokens = 2; });
  refuses("'value_encoder_gradient' has heads = 1, but value_encoder's is 2",
          [](F&, A& a) { a.value_encoder_gradient.heads = 1; });
  refuses("'key_encoder_gradient' has tokens = 3, but key_encoder's is 0", [](F&, A& a) {
    a.key_encoder = {};
    a.value_encoder = {};
  });
  refuses("'initial_state_gradient' has slot_stride = 5, but must be at least",
          [](F&, A& a) { a.initial_state_gradient.pool.slot_stride = 5; });
  refuses("'initial_state_gradient.slots[0]' is -2, but must be from -1 to 2", [](F& f, A& a) {
    f.list = {-2, 0};
    a.initial_state_gradient.slots = f.list.data();
  });
  refuses("'initial_state_gradient.slots[0]' and 'initial_state_gradient.slots[1]' share the state of slot 2",
          [](F& f, A& a) {
            f.list = {2, 2};
            a.initial_state_gradient.slots = f.list.data();
          });
  refuses("'initial_state_gradient.slots[0]' and 'final_state_gradient.slots[1]' share the state of slot 0",
          [](F& f, A& a) {
            f.list = {1, 0};
            a.final_state_gradient = {a.initial_state_gradient.pool, f.list.data()};
          });
}

TEST_CASE("sequences and states") {
  refuses("'sequences.seq_lens[1]' is 7, but must be from 0 to 6", [](F& f, A& a) {
    f.list = {6, 7};
    a.sequences.seq_lens = f.list.data();
  });
  refuses("'sequences.prefix_lens[1]' is 4, but must be from 0 to 3", [](F& f, A& a) {
    f.list = {0, 4};
    a.sequences.prefix_lens = f.list.data();
  });
  refuses("'initial_state' is null", [](F&, A& a) {
    static const std::uint8_t flags[batch] = {1, 1};
    a.has_initial_state = flags;
  });
  refuses("'initial_state.slots[0]' is 5, but must be from -1 to 2", [](F& f, A& a) {
    f.list = {5, 0};
    a.initial_state = {view_pool<StateFormatOf<Config>>(f.initial.data(), 3, heads), f.list.data()};
  });
  refuses<WithPositions>("'sequences.first_positions (the feature map needs the position)' is null",
                         [](Fixture<WithPositions>& f, BackwardArgs<WithPositions>& a) {
                           a.feature_map.horizon = 10;
                           a.initial_state = {view_pool<StateFormatOf<WithPositions>>(f.initial.data(), 3, heads)};
                         });
}

TEST_CASE("a sequence without a slot is skipped: its gradients are 0 and its state's is not written") {
  F fixture;
  auto args = fixture.args();
  fixture.slots = {0, skip_slot};
  CHECK(backward(args, Cpu{}).message() == "");
  const std::size_t half = fixture.wide[0].size() / 2;
  CHECK(fixture.wide[0][0] != 0.0F);
  CHECK(fixture.wide[0][half] == 0.0F);
  CHECK(fixture.narrow[2][fixture.narrow[2].size() / 2] == 0.0F);
  CHECK(fixture.states.back() == 7.0F);
}

TEST_CASE("workspace") {
  F fixture;
  const auto args = fixture.args();
  const std::size_t bytes = backward_workspace_bytes(args, Cpu{});
  REQUIRE(bytes > 0);
  fixture.refuses(backward(args, {fixture.workspace.data(), bytes - 1}, Cpu{}),
                  "'workspace' has bytes = " + std::to_string(bytes - 1) + ", but the call needs " + std::to_string(bytes));
}

}  // namespace
}  // namespace jrt::test
