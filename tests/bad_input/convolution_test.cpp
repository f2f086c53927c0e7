// SPDX-License-Identifier: Apache-2.0
// One case per documented error of the convolution: a clear sentence with the argument and both values, and nothing
// written.
#include <doctest/doctest.h>

#include <jrt/cpu.hpp>
#include <jrt/mixer/gated_convolution.hpp>
#include <string>
#include <vector>

namespace jrt::test {
namespace {

using Config = GatedConvolution<float, 3>;
using Format = StateFormatOf<Config>;

constexpr std::int64_t batch = 2;
constexpr std::int64_t tokens = 6;
constexpr std::int64_t channels = 5;

using P = PrefillArgs<Config>;
using D = DecodeArgs<Config>;
using S = StagedStepArgs<Config>;
using C = CommitArgs<Config>;

/// A good call of every operation; tests spoil one thing.
struct Fixture {
  std::vector<float> u = std::vector<float>(batch * tokens * channels, 0.5F);
  std::vector<float> y = std::vector<float>(batch * tokens * channels + 1, 7.0F);
  std::vector<float> w = std::vector<float>(channels * 3 + 1, 0.25F);
  std::vector<float> states = std::vector<float>(3 * channels * 2 + 1, 7.0F);
  std::vector<float> staged = std::vector<float>(batch * 8 * channels + 1, 7.0F);
  std::vector<std::int32_t> slots{0, 1};
  std::vector<std::int32_t> list{0, 0, 0};
  std::vector<std::int32_t> accepted{1, 2};

  template <class Args>
  Args with_tokens() {
    constexpr TensorShape shape{batch, tokens, 1, channels};
    Args args;
    args.input = view_bthd(u.data(), shape);
    args.gate = view_bthd(u.data(), shape);
    args.output = view_bthd(y.data(), shape);
    args.weight = w.data();
    args.bias = w.data();
    return args;
  }
  StateSlots<Format> pool() { return {view_pool<Format>(states.data(), 3, channels), slots.data()}; }
  StagingView<Config> staging() { return {staged.data(), batch, 8, channels}; }

  void make(P& args) {
    args = with_tokens<P>();
    args.final_state = pool();
  }
  void make(D& args) {
    args = with_tokens<D>();
    args.source = pool();
  }
  void make(S& args) {
    args = with_tokens<S>();
    args.state = pool();
    args.staging = staging();
  }
  void make(C& args) {
    args.staging = staging();
    args.accepted_tokens = accepted.data();
    args.source = pool();
  }

  bool untouched() const {
    return y == std::vector<float>(y.size(), 7.0F) && states == std::vector<float>(states.size(), 7.0F) &&
           staged == std::vector<float>(staged.size(), 7.0F);
  }
};

Status run(const P& args, const Cpu<>& on) {
  return prefill(args, on);
}
Status run(const D& args, const Cpu<>& on) {
  return decode_step(args, on);
}
Status run(const S& args, const Cpu<>& on) {
  return staged_step(args, on);
}
Status run(const C& args, const Cpu<>& on) {
  return commit(args, on);
}
Status run_without(const P& args, const Cpu<>& on) {
  return prefill(args, {}, on);
}
Status run_without(const D& args, const Cpu<>& on) {
  return decode_step(args, {}, on);
}
Status run_without(const S& args, const Cpu<>& on) {
  return staged_step(args, {}, on);
}
Status run_without(const C& args, const Cpu<>& on) {
  return commit(args, {}, on);
}

template <class Args, class Spoil>
void refuses(const std::string& part, const Spoil& spoil) {
  CAPTURE(part);
  Fixture fixture;
  Args args;
  fixture.make(args);
  spoil(fixture, args);
  for (const Status& status : {run(args, Cpu{}), run_without(args, Cpu{})}) {
    INFO(std::string(status.message()));
    CHECK(status.code() == StatusCode::invalid_argument);
    CHECK(status.message().find(part) != std::string_view::npos);
    CHECK(fixture.untouched());
  }
}

template <class Pointer>
Pointer one_byte_on(Pointer pointer) {
  return reinterpret_cast<Pointer>(reinterpret_cast<std::uintptr_t>(pointer) + 1);
}

TEST_CASE_TEMPLATE("the good calls are good", Args, P, D, S, C) {
  Fixture fixture;
  Args args;
  fixture.make(args);
  fixture.staged.assign(fixture.staged.size(), 1.0F);  // what a commit takes is not what states hold already
  CHECK(run(args, Cpu{}).ok());
  CHECK((fixture.y[0] != 7.0F || fixture.states[1] != 7.0F));
}

TEST_CASE_TEMPLATE("inputs, gates, outputs and weights", Args, P, D, S) {
  using F = Fixture;
  const auto bad = [](const std::string& part, void (*spoil)(F&, Args&)) { refuses<Args>(part, spoil); };
  bad("'input' is null", [](F&, Args& a) { a.input.data = nullptr; });
  bad("'input' is missing: it has heads = 0, but the number of a convolution's is 1", [](F&, Args& a) { a.input = {}; });
  bad("'output' is missing: it has heads = 0, but the number of a convolution's is 1", [](F&, Args& a) { a.output = {}; });
  bad("'gate' is null", [](F&, Args& a) { a.gate.data = nullptr; });
  bad("'output' is null", [](F&, Args& a) { a.output.data = nullptr; });
  bad("'weight' is null", [](F&, Args& a) { a.weight = nullptr; });
  bad("'weight' points 1 bytes past an aligned address, but its alignment is 4",
      [](F&, Args& a) { a.weight = one_byte_on(a.weight); });
  bad("'bias' points 1 bytes past", [](F&, Args& a) { a.bias = one_byte_on(a.bias); });
  bad("'input' points 1 bytes past", [](F&, Args& a) { a.input.data = one_byte_on(a.input.data); });
  bad("'gate' points 1 bytes past", [](F&, Args& a) { a.gate.data = one_byte_on(a.gate.data); });
  bad("'output' points 1 bytes past", [](F&, Args& a) { a.output.data = one_byte_on(a.output.data); });
  bad("'input' has heads = 2, but the number of a convolution's is 1", [](F&, Args& a) { a.input.heads = 2; });
  bad("'gate' has heads = 3, but the number of a convolution's is 1", [](F&, Args& a) { a.gate.heads = 3; });
  bad("'output' has heads = 2, but the number of a convolution's is 1", [](F&, Args& a) { a.output.heads = 2; });
  bad("'gate' has dim = 4, but input's is 5", [](F&, Args& a) { a.gate.dim = 4; });
  bad("'output' has dim = 6, but input's is 5", [](F&, Args& a) { a.output.dim = 6; });
  bad("'gate' has tokens = 5, but input's is 6", [](F&, Args& a) { a.gate.tokens = 5; });
  bad("'gate' has tokens = 0, but input's is 6", [](F&, Args& a) { a.gate.tokens = 0; });
  bad("'output' has tokens = 7, but input's is 6", [](F&, Args& a) { a.output.tokens = 7; });
  bad("'gate' has batch = 1, but input's is 2", [](F&, Args& a) { a.gate.batch = 1; });
  bad("'output' has batch = 1, but input's is 2", [](F&, Args& a) { a.output.batch = 1; });
  bad("'input' has tokens = -1, but must be at least 0", [](F&, Args& a) { a.input.tokens = -1; });
  bad("'input' has token_stride = -5, but must be at least 0", [](F&, Args& a) { a.input.token_stride = -5; });
  bad("'output' has token_stride = 4, but must be at least 5", [](F&, Args& a) { a.output.token_stride = 4; });
  bad("'output' has batch_stride = 29, but must be at least 30", [](F&, Args& a) { a.output.batch_stride = 29; });
  bad("'input' has dim = 0, but must be at least 1", [](F&, Args& a) {
    a.input.dim = 0;
    a.gate.dim = 0;
    a.output.dim = 0;
  });
}

TEST_CASE("prefill: sequences and states") {
  using F = Fixture;
  refuses<P>("'sequences.left_pads[1]' is 7, but must be from 0 to 6", [](F& f, P& a) {
    f.list = {0, 7};
    a.sequences.left_pads = f.list.data();
  });
  refuses<P>("'sequences.seq_lens[0]' is -1, but must be from 0 to 6", [](F& f, P& a) {
    f.list = {-1, 6};
    a.sequences.seq_lens = f.list.data();
  });
  refuses<P>("'sequences.cu_seqlens[2]' is 3, but must be from 5 to 6", [](F& f, P& a) {
    f.list = {0, 5, 3};
    a.input.batch = a.gate.batch = a.output.batch = 1;
    a.sequences.count = 2;
    a.sequences.cu_seqlens = f.list.data();
  });
  refuses<P>("has batch = 2, but the batch of packed sequences is 1", [](F& f, P& a) {
    a.sequences.count = 2;
    a.sequences.cu_seqlens = f.list.data();
  });
  refuses<P>("'initial_state' is null", [](F&, P& a) {
    static constexpr std::uint8_t has[] = {1, 1};
    a.has_initial_state = has;
  });
  refuses<P>("'final_state' is null", [](F&, P& a) { a.final_state.pool.data = nullptr; });
  refuses<P>("'final_state' has heads = 4", [](F&, P& a) { a.final_state.pool.heads = 4; });
  refuses<P>("'final_state' has slot_stride = 9, but must be at least 10",
             [](F&, P& a) { a.final_state.pool.slot_stride = 9; });
  refuses<P>("'final_state.slots[1]' is 3, but must be from -1 to 2", [](F& f, P&) { f.slots[1] = 3; });
  refuses<P>("'final_state.slots[0]' and 'final_state.slots[1]' share the state of slot 0",
             [](F& f, P&) { f.slots[1] = 0; });
  refuses<P>("share the state of slot", [](F& f, P& a) {
    f.list = {1, 0};
    a.initial_state = {a.final_state.pool, f.list.data()};
  });
}

TEST_CASE("steps: states and staging") {
  using F = Fixture;
  refuses<D>("'source' is null", [](F&, D& a) { a.source.pool.data = nullptr; });
  refuses<D>("'source' has heads = 6", [](F&, D& a) { a.source.pool.heads = 6; });
  refuses<D>("'source.slots[0]' is -2", [](F& f, D&) { f.slots[0] = -2; });
  refuses<D>("'destination.slots[1]' is 3", [](F& f, D& a) {
    f.list = {0, 3};
    a.destination = {a.source.pool, f.list.data()};
  });
  refuses<S>("'state' is null", [](F&, S& a) { a.state.pool.data = nullptr; });
  refuses<S>("'state.slots[1]' is 9", [](F& f, S&) { f.slots[1] = 9; });
  refuses<S>("'staging' is null", [](F&, S& a) { a.staging.data = nullptr; });
  refuses<S>("'staging' has sequences = 1, but input's batch is 2", [](F&, S& a) { a.staging.sequences = 1; });
  refuses<S>("'staging' has heads = 4, but input's dim is 5", [](F&, S& a) { a.staging.heads = 4; });
  refuses<S>("'already_staged' has value = -1, but must be at least 0", [](F&, S& a) { a.already_staged = -1; });
  refuses<S>("'staging' has tokens = 8, but must be at least 9", [](F&, S& a) { a.already_staged = 9; });
  refuses<S>("'staging' has tokens left = 5, but must be at least 6", [](F&, S& a) { a.already_staged = 3; });
  refuses<S>("'staging' is missing: it has sequences = 0, but input's batch is 2", [](F&, S& a) { a.staging = {}; });
  refuses<C>("'staging' is missing: it has heads = 0, but source's is 5", [](F&, C& a) { a.staging = {}; });
  refuses<C>("'accepted_tokens' is null", [](F&, C& a) { a.accepted_tokens = nullptr; });
  refuses<C>("'accepted_tokens[1]' is 9, but must be from 0 to 8", [](F& f, C&) { f.accepted[1] = 9; });
  refuses<C>("'source' has heads = 4", [](F&, C& a) { a.source.pool.heads = 4; });
  refuses<C>("'staging' points 1 bytes past", [](F&, C& a) { a.staging.data = one_byte_on(a.staging.data); });
  refuses<C>("'destination' is null", [](F& f, C& a) { a.destination.slots = f.slots.data(); });
}

}  // namespace
}  // namespace jrt::test
