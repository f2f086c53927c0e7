// SPDX-License-Identifier: Apache-2.0
// One case per documented error of window attention: a clear sentence with the argument and both values, and nothing
// written.
#include <doctest/doctest.h>

#include <cmath>
#include <jrt/cpu.hpp>
#include <jrt/mixer/window_attention.hpp>
#include <jrt/state_exchange.hpp>
#include <jrt/state_operations.hpp>
#include <string>
#include <vector>

namespace jrt::test {
namespace {

struct Config : SlidingWindowAttention<float, 4, 2> {
  static constexpr int value_dim = 8;
};
using Format = StateFormatOf<Config>;

constexpr std::int64_t batch = 2;
constexpr std::int64_t tokens = 6;
constexpr std::int64_t heads = 2;

/// A good call with room for everything; tests spoil one thing.
struct Fixture {
  std::vector<float> q = std::vector<float>(batch * tokens * heads * 4, 0.5F);
  std::vector<float> v = std::vector<float>(batch * tokens * heads * 8, 0.5F);
  std::vector<float> y = std::vector<float>(batch * tokens * heads * 8 + 1, 7.0F);
  std::vector<float> states = std::vector<float>(static_cast<std::size_t>(3 * heads * Format::head_elements), 7.0F);
  std::vector<float> staged = std::vector<float>(batch * 8 * heads * 12, 7.0F);
  std::vector<std::int32_t> slots{0, 1};
  std::vector<std::int32_t> list{0, 0, 0};
  std::vector<std::byte> workspace = std::vector<std::byte>(1 << 20);

  auto prefill_args() {
    constexpr TensorShape narrow{batch, tokens, heads, 4};
    constexpr TensorShape wide{batch, tokens, heads, 8};
    PrefillArgs<Config> args;
    args.query = view_bthd<const float>(q.data(), narrow);
    args.key = view_bthd<const float>(q.data(), narrow);
    args.value = view_bthd<const float>(v.data(), wide);
    args.output = view_bthd(y.data(), wide);
    args.final_state = {view_pool<Format>(states.data(), 3, heads), slots.data()};
    return args;
  }
  auto decode_args() {
    const auto from = prefill_args();
    DecodeArgs<Config> args;
    args.query = from.query;
    args.key = from.key;
    args.value = from.value;
    args.output = from.output;
    args.source = from.final_state;
    return args;
  }
  auto staged_args() {
    const auto from = prefill_args();
    StagedStepArgs<Config> args;
    args.query = from.query;
    args.key = from.key;
    args.value = from.value;
    args.output = from.output;
    args.state = from.final_state;
    args.staging = {staged.data(), batch, 8, heads};
    return args;
  }
  auto commit_args() {
    CommitArgs<Config> args;
    list = {1, 2};
    args.staging = {staged.data(), batch, 8, heads};
    args.source = {view_pool<Format>(states.data(), 3, heads), slots.data()};
    args.accepted_tokens = list.data();
    return args;
  }

  static bool sevens(const std::vector<float>& numbers) { return numbers == std::vector<float>(numbers.size(), 7.0F); }
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

template <class Spoil>
void prefill_refuses(const std::string& part, const Spoil& spoil) {
  CAPTURE(part);
  F fixture;
  auto args = fixture.prefill_args();
  spoil(fixture, args);
  fixture.refuses(prefill(args, {fixture.workspace.data(), fixture.workspace.size()}, Cpu{}), part);
  // The overload with a workspace of its own says the same.
  fixture.refuses(prefill(args, Cpu{}), part);
}
template <class Spoil>
void decode_refuses(const std::string& part, const Spoil& spoil) {
  CAPTURE(part);
  F fixture;
  auto args = fixture.decode_args();
  spoil(fixture, args);
  fixture.refuses(decode_step(args, {fixture.workspace.data(), fixture.workspace.size()}, Cpu{}), part);
  fixture.refuses(decode_step(args, Cpu{}), part);
}
template <class Spoil>
void staged_refuses(const std::string& part, const Spoil& spoil) {
  CAPTURE(part);
  F fixture;
  auto args = fixture.staged_args();
  spoil(fixture, args);
  fixture.refuses(staged_step(args, {fixture.workspace.data(), fixture.workspace.size()}, Cpu{}), part);
  fixture.refuses(staged_step(args, Cpu{}), part);
}
template <class Spoil>
void commit_refuses(const std::string& part, const Spoil& spoil) {
  CAPTURE(part);
  F fixture;
  auto args = fixture.commit_args();
  spoil(fixture, args);
  fixture.refuses(commit(args, {fixture.workspace.data(), fixture.workspace.size()}, Cpu{}), part);
  fixture.refuses(commit(args, Cpu{}), part);
}

TEST_CASE("the good calls are good") {
  F fixture;
  CHECK(prefill(fixture.prefill_args(), Cpu{}).message() == "");
  CHECK(decode_step(fixture.decode_args(), Cpu{}).message() == "");
  CHECK(staged_step(fixture.staged_args(), Cpu{}).message() == "");
  CHECK(commit(fixture.commit_args(), Cpu{}).message() == "");
  CHECK_FALSE(fixture.untouched());
}

TEST_CASE("prefill: pointers, extents and strides") {
  prefill_refuses("'query' is null", [](F&, P& a) { a.query.data = nullptr; });
  prefill_refuses("'key' is null", [](F&, P& a) { a.key.data = nullptr; });
  prefill_refuses("'value' is null", [](F&, P& a) { a.value.data = nullptr; });
  prefill_refuses("'output' is null", [](F&, P& a) { a.output.data = nullptr; });
  prefill_refuses("'value' points 1 bytes past an aligned address, but its alignment is 4", [](F&, P& a) {
    a.value.data = reinterpret_cast<const float*>(reinterpret_cast<const char*>(a.value.data) + 1);
  });
  prefill_refuses("'query' has dim = 5, but the operator's is 4", [](F&, P& a) { a.query.dim = 5; });
  prefill_refuses("'key' has dim = 8, but the operator's is 4", [](F&, P& a) { a.key.dim = 8; });
  prefill_refuses("'value' has dim = 7, but the operator's is 8", [](F&, P& a) { a.value.dim = 7; });
  prefill_refuses("'output' has dim = 4, but the operator's is 8", [](F&, P& a) { a.output.dim = 4; });
  prefill_refuses("'query' has tokens = -1, but must be at least 0", [](F&, P& a) { a.query.tokens = -1; });
  prefill_refuses("'key' has tokens = 5, but query's is 6", [](F&, P& a) { a.key.tokens = 5; });
  prefill_refuses("'value' has batch = 1, but query's is 2", [](F&, P& a) { a.value.batch = 1; });
  prefill_refuses("'output' has tokens = 4, but query's is 6", [](F&, P& a) { a.output.tokens = 4; });
  prefill_refuses("'value' has heads = 1, but key's is 2", [](F&, P& a) { a.value.heads = 1; });
  prefill_refuses("'output' has heads = 1, but query's is 2", [](F&, P& a) { a.output.heads = 1; });
  prefill_refuses("'key' has heads = 0, but must be at least 1", [](F&, P& a) { a.key.heads = 0; });
  prefill_refuses("'query' has heads = 3, but must be a multiple of the heads of 'key', which is 2", [](F&, P& a) {
    a.query.heads = 3;
    a.output.heads = 3;
  });
  prefill_refuses("'key' has token_stride = -16, but must be at least 0", [](F&, P& a) { a.key.token_stride = -16; });
  prefill_refuses("'output' has token_stride = 7, but must be at least 8", [](F&, P& a) { a.output.token_stride = 7; });
  prefill_refuses("'output' has head_stride = 0, but must be at least 8", [](F&, P& a) { a.output.head_stride = 0; });
  prefill_refuses("'output' has batch_stride = 95, but must be at least 96", [](F&, P& a) { a.output.batch_stride = 95; });
}

TEST_CASE("what is left out is named, not what follows from it") {
  prefill_refuses("'query' is missing: it has dim = 0", [](F&, P& a) { a.query = {}; });
  decode_refuses("'key' is missing: it has dim = 0", [](F&, D& a) { a.key = {}; });
  staged_refuses("'value' is missing: it has dim = 0", [](F&, S& a) { a.value = {}; });
  staged_refuses("'output' is missing: it has dim = 0", [](F&, S& a) { a.output = {}; });
  staged_refuses("'staging' is missing: it has sequences = 0, but query's batch is 2", [](F&, S& a) { a.staging = {}; });
  commit_refuses("'staging' is missing: it has heads = 0, but source's is 2", [](F&, C& a) { a.staging = {}; });
}

TEST_CASE("the scale is a finite number, whatever the operation") {
  const std::string sentence = "'scale' is nan, but must be a finite number";
  prefill_refuses("prefill: argument " + sentence, [](F&, P& a) { a.scale = std::nan(""); });
  prefill_refuses("'scale' is inf", [](F&, P& a) { a.scale = INFINITY; });
  decode_refuses("decode_step: argument " + sentence, [](F&, D& a) { a.scale = std::nan(""); });
  staged_refuses("staged_step: argument " + sentence, [](F&, S& a) { a.scale = std::nan(""); });
}

TEST_CASE("prefill: sequences") {
  prefill_refuses("'sequences.seq_lens[1]' is 7, but must be from 0 to 6", [](F& f, P& a) {
    f.list = {6, 7};
    a.sequences.seq_lens = f.list.data();
  });
  prefill_refuses("'sequences.left_pads[0]' is 7, but must be from 0 to 6", [](F& f, P& a) {
    f.list = {7, 0};
    a.sequences.left_pads = f.list.data();
  });
  prefill_refuses("'sequences.left_pads[1]' is -1, but must be from 0 to 6", [](F& f, P& a) {
    f.list = {0, -1};
    a.sequences.left_pads = f.list.data();
  });
  prefill_refuses("'sequences.cu_seqlens' is null", [](F&, P& a) { a.sequences.count = 2; });
  const auto packed = [](F& f, P& a, std::vector<std::int32_t> offsets) {
    for (auto* view : {&a.query, &a.key, &a.value}) {
      view->batch = 1;
    }
    a.output.batch = 1;
    f.list = std::move(offsets);
    a.sequences.count = 2;
    a.sequences.cu_seqlens = f.list.data();
  };
  prefill_refuses("'sequences.cu_seqlens[2]' is 7, but must be from 3 to 6", [&](F& f, P& a) { packed(f, a, {0, 3, 7}); });
  prefill_refuses("'sequences.cu_seqlens[2]' is 2, but must be from 3 to 6", [&](F& f, P& a) { packed(f, a, {0, 3, 2}); });
  prefill_refuses("'sequences.cu_seqlens[0]' is -1", [&](F& f, P& a) { packed(f, a, {-1, 3, 6}); });
  prefill_refuses("'sequences.left_pads[1]' is 4, but must be from 0 to 3", [&](F& f, P& a) {
    static const std::int32_t pads[] = {0, 4};
    packed(f, a, {0, 3, 6});
    a.sequences.left_pads = pads;
  });
}

TEST_CASE("prefill: caches") {
  prefill_refuses("'final_state.slots[1]' is 3, but must be from -1 to 2", [](F& f, P&) { f.slots = {0, 3}; });
  prefill_refuses("'final_state.slots[0]' is -2, but must be from -1 to 2", [](F& f, P&) { f.slots = {-2, 0}; });
  prefill_refuses("'final_state.slots[0]' and 'final_state.slots[1]' share the state of slot 2", [](F& f, P&) {
    f.slots = {2, 2};
  });
  prefill_refuses("'final_state.slots[0]' and 'initial_state.slots[1]' share the state of slot 0", [](F& f, P& a) {
    f.list = {1, 0};
    a.initial_state = {a.final_state.pool, f.list.data()};
  });
  prefill_refuses("'final_state' has heads = 1, but the number of key/value heads is 2",
                  [](F&, P& a) { a.final_state.pool.heads = 1; });
  prefill_refuses("'final_state' points 4 bytes past an aligned address, but its alignment is 16",
                  [](F&, P& a) { ++a.final_state.pool.data; });
  prefill_refuses("'initial_state' points 8 bytes past an aligned address, but its alignment is 16", [](F&, P& a) {
    a.initial_state = a.final_state;
    a.initial_state.pool.data += 2;
  });
  prefill_refuses("'final_state' has slot_stride = 5, but must be at least",
                  [](F&, P& a) { a.final_state.pool.slot_stride = 5; });
  constexpr std::int64_t stride = heads * Format::head_elements + 1;
  prefill_refuses("'final_state' has slot_stride = " + std::to_string(stride) +
                      ", but must be a multiple of the elements of the format's alignment, which is 4",
                  [](F&, P& a) { a.final_state.pool.slot_stride = stride; });
  prefill_refuses("'final_state.slots[1]' is 1, but must be from -1 to 0", [](F&, P& a) {
    a.final_state.pool.slots = 1;
    a.final_state.slots = nullptr;
  });
  prefill_refuses("'initial_state' is null", [](F&, P& a) {
    static const std::uint8_t flags[batch] = {1, 1};
    a.has_initial_state = flags;
  });
}

TEST_CASE("workspaces") {
  F fixture;
  const std::size_t bytes = prefill_workspace_bytes(fixture.prefill_args(), Cpu{});
  REQUIRE(bytes > 0);
  const std::string part =
      "'workspace' has bytes = " + std::to_string(bytes - 1) + ", but the call needs " + std::to_string(bytes);
  fixture.refuses(prefill(fixture.prefill_args(), {fixture.workspace.data(), bytes - 1}, Cpu{}), part);
  fixture.refuses(prefill(fixture.prefill_args(), {nullptr, bytes}, Cpu{}), "'workspace' is null");
  fixture.refuses(decode_step(fixture.decode_args(), {}, Cpu{}), "'workspace'");
  fixture.refuses(staged_step(fixture.staged_args(), {}, Cpu{}), "'workspace'");
}

TEST_CASE("decode_step") {
  decode_refuses("decode_step: argument 'source' is null", [](F&, D& a) { a.source = {}; });
  decode_refuses("'key' is null", [](F&, D& a) { a.key.data = nullptr; });
  decode_refuses("'output' has tokens = 1, but query's is 6", [](F&, D& a) { a.output.tokens = 1; });
  decode_refuses("'query' has heads = 3", [](F&, D& a) {
    a.query.heads = 3;
    a.output.heads = 3;
  });
  decode_refuses("'source' points 4 bytes past an aligned address, but its alignment is 16",
                 [](F&, D& a) { ++a.source.pool.data; });
  decode_refuses("'destination' points 12 bytes past an aligned address, but its alignment is 16", [](F&, D& a) {
    a.destination = a.source;
    a.destination.pool.data += 3;
  });
  decode_refuses("'source.slots[1]' is 5, but must be from -1 to 2", [](F& f, D&) { f.slots = {0, 5}; });
  decode_refuses("'source.slots[0]' and 'source.slots[1]' share the state of slot 2", [](F& f, D&) { f.slots = {2, 2}; });
  decode_refuses("'destination.slots[0]' and 'destination.slots[1]' share the state of slot 2", [](F& f, D& a) {
    f.list = {2, 2};
    a.destination = {a.source.pool, f.list.data()};
  });
  decode_refuses("'destination.slots[0]' and 'source.slots[1]' share the state of slot 1", [](F& f, D& a) {
    f.list = {1, 2};
    a.destination = {a.source.pool, f.list.data()};
  });
  decode_refuses("'destination' is null", [](F& f, D& a) { a.destination.slots = f.list.data(); });
}

TEST_CASE("staged_step") {
  staged_refuses("staged_step: argument 'state' is null", [](F&, S& a) { a.state = {}; });
  staged_refuses("'staging' has tokens left = 5, but must be at least 6", [](F&, S& a) { a.already_staged = 3; });
  staged_refuses("'staging' has tokens left = 4, but must be at least 6", [](F&, S& a) { a.staging.tokens = 4; });
  staged_refuses("'staging' has tokens = 8, but must be at least 9", [](F&, S& a) { a.already_staged = 9; });
  staged_refuses("'staging' has sequences = 1, but query's batch is 2", [](F&, S& a) { a.staging.sequences = 1; });
  staged_refuses("'staging' has heads = 3, but key's heads is 2", [](F&, S& a) { a.staging.heads = 3; });
  staged_refuses("'staging' is null", [](F&, S& a) { a.staging.data = nullptr; });
  staged_refuses("'staging' points 1 bytes past an aligned address, but its alignment is 4",
                 [](F&, S& a) { a.staging.data = reinterpret_cast<float*>(reinterpret_cast<char*>(a.staging.data) + 1); });
  staged_refuses("'already_staged' has value = -1, but must be at least 0", [](F&, S& a) { a.already_staged = -1; });
  staged_refuses("'state.slots[0]' is 3, but must be from -1 to 2", [](F& f, S&) { f.slots = {3, 0}; });
  staged_refuses("'state' points 4 bytes past an aligned address, but its alignment is 16",
                 [](F&, S& a) { ++a.state.pool.data; });
}

TEST_CASE("commit") {
  commit_refuses("commit: argument 'accepted_tokens' is null", [](F&, C& a) { a.accepted_tokens = nullptr; });
  commit_refuses("'accepted_tokens[1]' is 9, but must be from 0 to 8", [](F& f, C&) { f.list = {0, 9}; });
  commit_refuses("'accepted_tokens[0]' is -1, but must be from 0 to 8", [](F& f, C&) { f.list = {-1, 0}; });
  commit_refuses("'source' is null", [](F&, C& a) { a.source = {}; });
  commit_refuses("'staging' is null", [](F&, C& a) { a.staging.data = nullptr; });
  commit_refuses("'source' has heads = 2, but the number of key/value heads is 1", [](F&, C& a) { a.staging.heads = 1; });
  commit_refuses("'source.slots[0]' and 'source.slots[1]' share the state of slot 1", [](F& f, C&) { f.slots = {1, 1}; });
  commit_refuses("'destination.slots[1]' is 3, but must be from -1 to 2", [](F& f, C& a) {
    static const std::int32_t slots[] = {0, 3};
    a.destination = {view_pool<Format>(f.states.data(), 3, heads), slots};
  });
}

TEST_CASE("operations on whole caches") {
  F fixture;
  const StateSlots<Format> good{view_pool<Format>(fixture.states.data(), 3, heads)};
  fixture.refuses(clear_states(good, 4, Cpu{}), "'states[3]' is 3, but must be from -1 to 2");
  StateSlots<Format> crooked = good;
  ++crooked.pool.data;
  fixture.refuses(clear_states(crooked, 1, Cpu{}), "'states' points 4 bytes past an aligned address");
  fixture.refuses(copy_states(good, crooked, 1, Cpu{}), "'destination' points 4 bytes past an aligned address");
  fixture.list = {1, 1};
  fixture.refuses(copy_states(good, StateSlots<Format>{good.pool, fixture.list.data()}, 2, Cpu{}),
                  "share the state of slot 1");
  std::vector<std::byte> buffer(static_cast<std::size_t>(saved_states_bytes<Format>(3, heads)) - 1);
  fixture.refuses(save_states(good, 3, buffer, Cpu{}), "'buffer' has bytes = " + std::to_string(buffer.size()));
}

TEST_CASE("padding rows may hold anything, and skipped pairs share nothing") {
  F fixture;
  auto args = fixture.prefill_args();
  fixture.states.assign(fixture.states.size(), 0.0F);
  fixture.slots = {0, skip_slot};
  const std::vector<std::int32_t> pads{1, -5};
  args.sequences.left_pads = pads.data();
  // Sequence 1 would read the slot that sequence 0 writes, were it not skipped.
  const std::vector<std::int32_t> initial{1, 0};
  args.initial_state = {args.final_state.pool, initial.data()};
  CHECK(prefill(args, Cpu{}).message() == "");
  auto commit_args = fixture.commit_args();
  fixture.list = {2, -7};
  CHECK(commit(commit_args, Cpu{}).message() == "");
}

}  // namespace
}  // namespace jrt::test
