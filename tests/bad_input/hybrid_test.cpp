// SPDX-License-Identifier: Apache-2.0
// One case per documented error of linear and window attention in one mixer: a clear sentence with the argument and both
// values, and nothing written.
#include <doctest/doctest.h>

#include <algorithm>
#include <jrt/cpu.hpp>
#include <jrt/mixer/hybrid_attention.hpp>
#include <jrt/state_exchange.hpp>
#include <jrt/state_operations.hpp>
#include <string>
#include <vector>

namespace jrt::test {
namespace {

using Linear = PrefixLinearAttention<float, 4, 8>;
using Config = HybridAttention<Linear, WindowBeside<Linear, 2>>;
using Format = StateFormatOf<Config>;

constexpr std::int64_t batch = 2;
constexpr std::int64_t tokens = 6;
constexpr std::int64_t heads = 2;

/// A good call with room for everything; tests spoil one thing.
struct Fixture {
  std::vector<float> q = std::vector<float>(batch * tokens * heads * 4, 0.5F);
  std::vector<float> v = std::vector<float>(batch * tokens * heads * 8, 0.5F);
  std::vector<float> y = std::vector<float>(batch * tokens * heads * 8, 7.0F);
  std::vector<std::uint64_t> states =
      std::vector<std::uint64_t>(static_cast<std::size_t>(3 * heads * Format::head_elements), 7);
  std::vector<float> staged = std::vector<float>(batch * 8 * heads * 12, 7.0F);
  std::vector<std::int32_t> slots{0, 1};
  std::vector<std::int32_t> list{1, 2};
  std::vector<std::byte> workspace = std::vector<std::byte>(1 << 20);

  auto prefill_args() {
    constexpr TensorShape narrow{batch, tokens, heads, 4};
    constexpr TensorShape wide{batch, tokens, heads, 8};
    PrefillArgs<Config> args;
    args.query = view_bthd<const float>(q.data(), narrow);
    args.key = view_bthd<const float>(q.data(), narrow);
    args.value = view_bthd<const float>(v.data(), wide);
    args.key_encoder = args.key;
    args.value_encoder = args.value;
    args.output = view_bthd(y.data(), wide);
    args.final_state = {view_pool<Format>(states.data(), 3, heads), slots.data()};
    return args;
  }
  template <class Args>
  Args step_args() {
    const auto from = prefill_args();
    Args args;
    args.query = from.query;
    args.key = from.key;
    args.value = from.value;
    args.output = from.output;
    if constexpr (requires { args.source; }) {
      args.source = from.final_state;
    } else {
      args.state = from.final_state;
      args.staging = {staged.data(), batch, 8, heads};
    }
    return args;
  }
  auto commit_args() {
    CommitArgs<Config> args;
    args.staging = {staged.data(), batch, 8, heads};
    args.source = {view_pool<Format>(states.data(), 3, heads), slots.data()};
    args.accepted_tokens = list.data();
    return args;
  }

  template <class T>
  static bool sevens(const std::vector<T>& numbers) {
    return numbers == std::vector<T>(numbers.size(), T(7));
  }
  [[nodiscard]] bool untouched() const { return sevens(y) && sevens(states) && sevens(staged); }

  void refuses(const Status& status, const std::string& part) const {
    INFO(std::string(status.message()));
    CHECK(status.code() == StatusCode::invalid_argument);
    CHECK(status.message().find(part) != std::string_view::npos);
    CHECK(untouched());
  }
};

using F = Fixture;
using P = PrefillArgs<Config>;
using D = DecodeArgs<Config>;
using S = StagedStepArgs<Config>;
using C = CommitArgs<Config>;

/// Runs `run(args, …)` with and without a workspace of the caller's.
template <class Args, class Spoil, class Run>
void check_refusal(F& fixture, Args args, const std::string& part, const Spoil& spoil, const Run& run) {
  CAPTURE(part);
  spoil(fixture, args);
  fixture.refuses(run(args, Workspace{fixture.workspace.data(), fixture.workspace.size()}, Cpu{}), part);
  fixture.refuses(run(args, Cpu{}), part);
}
template <class Spoil>
void prefill_refuses(const std::string& part, const Spoil& spoil) {
  F f;
  check_refusal(f, f.prefill_args(), part, spoil, [](const auto&... a) { return prefill(a...); });
}
template <class Spoil>
void decode_refuses(const std::string& part, const Spoil& spoil) {
  F f;
  check_refusal(f, f.step_args<D>(), part, spoil, [](const auto&... a) { return decode_step(a...); });
}
template <class Spoil>
void staged_refuses(const std::string& part, const Spoil& spoil) {
  F f;
  check_refusal(f, f.step_args<S>(), part, spoil, [](const auto&... a) { return staged_step(a...); });
}
template <class Spoil>
void commit_refuses(const std::string& part, const Spoil& spoil) {
  F f;
  check_refusal(f, f.commit_args(), part, spoil, [](const auto&... a) { return commit(a...); });
}

TEST_CASE("the good calls are good") {
  F fixture;
  std::fill(fixture.states.begin(), fixture.states.end(), 0);
  CHECK(prefill(fixture.prefill_args(), Cpu{}).message() == "");
  CHECK(decode_step(fixture.step_args<D>(), Cpu{}).message() == "");
  CHECK(staged_step(fixture.step_args<S>(), Cpu{}).message() == "");
  CHECK(commit(fixture.commit_args(), Cpu{}).message() == "");
}

TEST_CASE("prefill") {
  prefill_refuses("prefill: argument 'query' is null", [](F&, P& a) { a.query.data = nullptr; });
  prefill_refuses("'key' has dim = 8, but the operator's is 4", [](F&, P& a) { a.key.dim = 8; });
  prefill_refuses("'value' has dim = 7, but the operator's is 8", [](F&, P& a) { a.value.dim = 7; });
  prefill_refuses("'output' has tokens = 4, but query's is 6", [](F&, P& a) { a.output.tokens = 4; });
  prefill_refuses("'key' has heads = 0, but must be at least 1", [](F&, P& a) { a.key.heads = 0; });
  prefill_refuses("'query' has heads = 3, but must be a multiple of the heads of 'key', which is 2", [](F&, P& a) {
    a.query.heads = 3;
    a.output.heads = 3;
  });
  prefill_refuses("'output' has head_stride = 0, but must be at least 8", [](F&, P& a) { a.output.head_stride = 0; });
  prefill_refuses("'key_encoder' has dim = 5, but the operator's is 4", [](F&, P& a) { a.key_encoder.dim = 5; });
  prefill_refuses("'value_encoder' has tokens = 5, but key_encoder's is 6", [](F&, P& a) { a.value_encoder.tokens = 5; });
  prefill_refuses("'prefix (key_encoder.tokens)[0]' is 6, but must be from 0 to 5 (the sequence's tokens)", [](F&, P& a) {
    for (auto* view : {&a.query, &a.key, &a.value}) {
      view->tokens = 5;
    }
    a.output.tokens = 5;
  });
  prefill_refuses("'sequences.seq_lens[1]' is 7, but must be from 0 to 6", [](F& f, P& a) {
    f.list = {6, 7};
    a.sequences.seq_lens = f.list.data();
  });
  prefill_refuses("'sequences.left_pads[0]' is 7, but must be from 0 to 6", [](F& f, P& a) {
    f.list = {7, 0};
    a.sequences.left_pads = f.list.data();
  });
  prefill_refuses("'sequences.prefix_lens[1]' is 7, but must be from 0 to 6", [](F& f, P& a) {
    f.list = {6, 7};
    a.sequences.prefix_lens = f.list.data();
  });
  prefill_refuses("'final_state.slots[1]' is 3, but must be from -1 to 2", [](F& f, P&) { f.slots = {0, 3}; });
  prefill_refuses("'final_state.slots[0]' and 'final_state.slots[1]' share the state of slot 2", [](F& f, P&) {
    f.slots = {2, 2};
  });
  prefill_refuses("'final_state' points 8 bytes past an aligned address, but its alignment is 16",
                  [](F&, P& a) { ++a.final_state.pool.data; });
  prefill_refuses("'final_state' has slot_stride = " + std::to_string(heads * Format::head_elements + 1) +
                      ", but must be a multiple of the elements of the format's alignment, which is 2",
                  [](F&, P& a) { ++a.final_state.pool.slot_stride; });
  prefill_refuses("'initial_state' is null", [](F&, P& a) {
    static const std::uint8_t flags[batch] = {1, 1};
    a.has_initial_state = flags;
  });
}

TEST_CASE("what is left out is named, not what follows from it") {
  prefill_refuses("'value' is missing: it has dim = 0", [](F&, P& a) { a.value = {}; });
  prefill_refuses("'key_encoder' is missing: it has tokens = 0, but value_encoder's is 6",
                  [](F&, P& a) { a.key_encoder = {}; });
  prefill_refuses("'value_encoder' is missing: it has tokens = 0, but key_encoder's is 6",
                  [](F&, P& a) { a.value_encoder = {}; });
  decode_refuses("'query' is missing: it has dim = 0", [](F&, D& a) { a.query = {}; });
  staged_refuses("'output' is missing: it has dim = 0", [](F&, S& a) { a.output = {}; });
  staged_refuses("'staging' is missing: it has sequences = 0, but query's batch is 2", [](F&, S& a) { a.staging = {}; });
  commit_refuses("'staging' is missing: it has heads = 0, but source's is 2", [](F&, C& a) { a.staging = {}; });
}

TEST_CASE("a mask without encoder region has none") {
  using Based = BasedLinearAttention<float, 4, 8>;
  using Causal = HybridAttention<Based, WindowBeside<Based, 2>>;
  F fixture;
  const auto from = fixture.prefill_args();
  PrefillArgs<Causal> args;
  args.query = from.query;
  args.key = from.key;
  args.value = from.value;
  args.key_encoder = from.key_encoder;
  args.value_encoder = from.value_encoder;
  args.output = from.output;
  fixture.refuses(prefill(args, Cpu{}), "'key_encoder' has tokens = 6, but what a mask without encoder region reads is 0");
}

TEST_CASE("workspaces") {
  F fixture;
  const std::size_t bytes = prefill_workspace_bytes(fixture.prefill_args(), Cpu{});
  const std::string part =
      "'workspace' has bytes = " + std::to_string(bytes - 1) + ", but the call needs " + std::to_string(bytes);
  fixture.refuses(prefill(fixture.prefill_args(), {fixture.workspace.data(), bytes - 1}, Cpu{}), part);
  fixture.refuses(prefill(fixture.prefill_args(), {nullptr, bytes}, Cpu{}), "'workspace' is null");
  fixture.refuses(decode_step(fixture.step_args<D>(), {}, Cpu{}), "decode_step: argument 'workspace'");
  fixture.refuses(staged_step(fixture.step_args<S>(), {}, Cpu{}), "staged_step: argument 'workspace'");
  fixture.refuses(commit(fixture.commit_args(), {}, Cpu{}), "commit: argument 'workspace'");
}

TEST_CASE("decode_step") {
  decode_refuses("decode_step: argument 'source' is null", [](F&, D& a) { a.source = {}; });
  decode_refuses("'key' is null", [](F&, D& a) { a.key.data = nullptr; });
  decode_refuses("'output' has tokens = 1, but query's is 6", [](F&, D& a) { a.output.tokens = 1; });
  decode_refuses("'source.slots[1]' is 5, but must be from -1 to 2", [](F& f, D&) { f.slots = {0, 5}; });
  decode_refuses("'destination.slots[0]' and 'source.slots[1]' share the state of slot 1", [](F& f, D& a) {
    f.list = {1, 2};
    a.destination = {a.source.pool, f.list.data()};
  });
}

TEST_CASE("staged_step and commit") {
  staged_refuses("staged_step: argument 'state' is null", [](F&, S& a) { a.state = {}; });
  staged_refuses("'staging' has tokens left = 5, but must be at least 6", [](F&, S& a) { a.already_staged = 3; });
  staged_refuses("'staging' has heads = 3, but key's heads is 2", [](F&, S& a) { a.staging.heads = 3; });
  staged_refuses("'already_staged' has value = -1, but must be at least 0", [](F&, S& a) { a.already_staged = -1; });
  staged_refuses("'state.slots[0]' is 3, but must be from -1 to 2", [](F& f, S&) { f.slots = {3, 0}; });
  commit_refuses("commit: argument 'accepted_tokens' is null", [](F&, C& a) { a.accepted_tokens = nullptr; });
  commit_refuses("'accepted_tokens[1]' is 9, but must be from 0 to 8", [](F& f, C&) { f.list = {0, 9}; });
  commit_refuses("'source' is null", [](F&, C& a) { a.source = {}; });
  commit_refuses("'staging' is null", [](F&, C& a) { a.staging.data = nullptr; });
}

TEST_CASE("operations on whole states") {
  F fixture;
  const StateSlots<Format> good{view_pool<Format>(fixture.states.data(), 3, heads)};
  fixture.refuses(clear_states(good, 4, Cpu{}), "'states[3]' is 3, but must be from -1 to 2");
  std::vector<std::byte> buffer(static_cast<std::size_t>(saved_states_bytes<Format>(3, heads)) - 1);
  fixture.refuses(save_states(good, 3, buffer, Cpu{}), "'buffer' has bytes = " + std::to_string(buffer.size()));
}

TEST_CASE("padding rows may hold anything") {
  F fixture;
  std::fill(fixture.states.begin(), fixture.states.end(), 0);
  fixture.slots = {0, skip_slot};
  auto args = fixture.prefill_args();
  fixture.list = {6, -5};
  args.sequences.prefix_lens = fixture.list.data();
  CHECK(prefill(args, Cpu{}).message() == "");
  CHECK(fixture.y.back() == 0);
}

}  // namespace
}  // namespace jrt::test
