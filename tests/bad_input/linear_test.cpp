// SPDX-License-Identifier: Apache-2.0
// One case per documented error: a clear sentence with the argument and both values, and nothing written.
#include <doctest/doctest.h>

#include <algorithm>
#include <jrt/cpu.hpp>
#include <jrt/decode.hpp>
#include <jrt/policy/cosformer.hpp>
#include <jrt/policy/favor.hpp>
#include <jrt/prefill.hpp>
#include <jrt/state_exchange.hpp>
#include <jrt/state_operations.hpp>
#include <string>
#include <vector>

namespace jrt::test {
namespace {

using Config = PrefixLinearAttention<float, 4, 8>;
using Based = BasedLinearAttention<float, 4, 8>;
struct Plain : Config {
  using Normaliser = Unnormalised;
};
using Format = StateFormatOf<Config>;

constexpr std::int64_t batch = 2;
constexpr std::int64_t tokens = 6;
constexpr std::int64_t heads = 2;

/// A good call with room for everything; tests spoil one thing.
template <class C>
struct Fixture {
  std::vector<float> q = std::vector<float>(batch * tokens * heads * 4, 0.5F);
  std::vector<float> v = std::vector<float>(batch * tokens * heads * 8, 0.5F);
  std::vector<float> y = std::vector<float>(batch * tokens * heads * 8 + 1, 7.0F);
  std::vector<float> states = std::vector<float>(static_cast<std::size_t>(3 * heads * Format::head_elements), 7.0F);
  std::vector<std::int32_t> slots{0, 1};
  std::vector<std::int32_t> list{0, 0, 0};
  std::vector<std::int32_t> other{0, 0, 0};
  std::vector<std::byte> workspace = std::vector<std::byte>(1 << 20);

  auto prefill_args() {
    constexpr TensorShape narrow{batch, tokens, heads, 4};
    constexpr TensorShape wide{batch, tokens, heads, 8};
    PrefillArgs<C> args{.query = view_bthd(q.data(), narrow), .key = view_bthd(q.data(), narrow)};
    args.value = view_bthd(v.data(), wide);
    if (C::Mask::reads_encoder) {
      args.key_encoder = view_bthd(q.data(), narrow).slice_tokens(0, 3);
      args.value_encoder = view_bthd(v.data(), wide).slice_tokens(0, 3);
    }
    args.output = view_bthd(y.data(), wide);
    args.final_state = {view_pool<Format>(states.data(), 3, heads), slots.data()};
    return args;
  }
  auto accumulate_args() {
    const auto from = prefill_args();
    AccumulateArgs<C> args{.key = from.key, .value = from.value, .final_state = from.final_state};
    return args;
  }
  auto decode_args() {
    const auto from = prefill_args();
    return DecodeArgs<C>{
        .query = from.query, .key = from.key, .value = from.value, .output = from.output, .source = from.final_state};
  }

  bool untouched() const {
    return y == std::vector<float>(y.size(), 7.0F) && states == std::vector<float>(states.size(), 7.0F);
  }

  void refuses(const Status& status, const std::string& part) const {
    INFO(std::string(status.message()));
    CHECK(status.code() == StatusCode::invalid_argument);
    CHECK(status.message().find(part) != std::string_view::npos);
    CHECK(untouched());
  }
};

template <class C = Config, class Spoil>
void prefill_refuses(const std::string& part, const Spoil& spoil) {
  CAPTURE(part);
  Fixture<C> fixture;
  auto args = fixture.prefill_args();
  spoil(fixture, args);
  fixture.refuses(prefill(args, {fixture.workspace.data(), fixture.workspace.size()}, Cpu{}), part);
  // The overload with a workspace of its own says the same.
  fixture.refuses(prefill(args, Cpu{}), part);
}

using F = Fixture<Config>;
using P = PrefillArgs<Config>;

TEST_CASE("the good calls are good") {
  F fixture;
  CHECK(prefill(fixture.prefill_args(), Cpu{}).ok());
  CHECK(accumulate(fixture.accumulate_args(), Cpu{}).ok());
  CHECK(decode_step(fixture.decode_args(), Cpu{}).ok());
  CHECK_FALSE(fixture.untouched());
}

TEST_CASE("prefill: pointers, extents and strides") {
  prefill_refuses("'query' is null", [](F&, P& a) { a.query.data = nullptr; });
  prefill_refuses("'key' is null", [](F&, P& a) { a.key.data = nullptr; });
  prefill_refuses("'output' is null", [](F&, P& a) { a.output.data = nullptr; });
  prefill_refuses("'key_encoder' is null", [](F&, P& a) { a.key_encoder.data = nullptr; });
  prefill_refuses("'value' points 1 bytes past an aligned address, but its alignment is 4", [](F&, P& a) {
    a.value.data = reinterpret_cast<const float*>(reinterpret_cast<const char*>(a.value.data) + 1);
  });
  prefill_refuses("'query' has dim = 5, but the operator's is 4", [](F&, P& a) { a.query.dim = 5; });
  prefill_refuses("'value' has dim = 7, but the operator's is 8", [](F&, P& a) { a.value.dim = 7; });
  prefill_refuses("'query' has tokens = -1, but must be at least 0", [](F&, P& a) { a.query.tokens = -1; });
  prefill_refuses("'key' has tokens = 5, but query's is 6", [](F&, P& a) { a.key.tokens = 5; });
  prefill_refuses("'value' has batch = 1, but query's is 2", [](F&, P& a) { a.value.batch = 1; });
  prefill_refuses("'output' has tokens = 4, but query's is 6", [](F&, P& a) { a.output.tokens = 4; });
  prefill_refuses("'value' has heads = 1, but key's is 2", [](F&, P& a) { a.value.heads = 1; });
  prefill_refuses("'query' has heads = 3, but must be a multiple of the heads of 'key', which is 2", [](F&, P& a) {
    a.query.heads = 3;
    a.output.heads = 3;
  });
  prefill_refuses("'output' has heads = 1, but query's is 2", [](F&, P& a) { a.output.heads = 1; });
  prefill_refuses("'key' has heads = 0, but must be at least 1", [](F&, P& a) { a.key.heads = 0; });
  prefill_refuses("'key' has token_stride = -16, but must be at least 0", [](F&, P& a) { a.key.token_stride = -16; });
  prefill_refuses("'output' has token_stride = 7, but must be at least 8", [](F&, P& a) { a.output.token_stride = 7; });
  prefill_refuses("'output' has head_stride = 0, but must be at least 8", [](F&, P& a) { a.output.head_stride = 0; });
  prefill_refuses("'output' has batch_stride = 0, but must be at least 8", [](F&, P& a) { a.output.batch_stride = 0; });
  prefill_refuses("'output' has batch_stride = 95, but must be at least 96", [](F&, P& a) { a.output.batch_stride = 95; });
  prefill_refuses("_stride = 8, but must be at least 48", [](F&, P& a) { a.output.token_stride = 8; });
}

TEST_CASE("denominators") {
  const auto place = [](auto& f, auto& a) { a.denominators = view_bthd(f.y.data(), {batch, tokens, heads, 1}); };
  prefill_refuses("'denominators' has dim = 8, but the operator's is 1", [](F&, P& a) { a.denominators = a.output; });
  prefill_refuses("'denominators' has tokens = 5, but query's is 6", [&](F& f, P& a) {
    place(f, a);
    a.denominators.tokens = 5;
  });
  prefill_refuses("'denominators' has heads = 4, but query's is 2", [&](F& f, P& a) {
    place(f, a);
    a.denominators.heads = 4;
  });
  prefill_refuses("'denominators' is null", [&](F& f, P& a) {
    place(f, a);
    a.denominators.data = nullptr;
  });
  prefill_refuses("'denominators' has head_stride = 0, but must be at least 1", [&](F& f, P& a) {
    place(f, a);
    a.denominators.head_stride = 0;
  });
  prefill_refuses<Plain>("'denominators' has tokens = 6, but what an operator that is not normalised has is 0", place);
  F fixture;
  auto step = fixture.decode_args();
  place(fixture, step);
  step.denominators.batch = 1;
  fixture.refuses(decode_step(step, Cpu{}), "decode_step: argument 'denominators' has batch = 1, but query's is 2");
}

TEST_CASE("prefill: encoder region") {
  prefill_refuses("'value_encoder' has tokens = 2, but key_encoder's is 3", [](F&, P& a) { a.value_encoder.tokens = 2; });
  prefill_refuses("'key_encoder' has heads = 1, but key's is 2", [](F&, P& a) {
    a.key_encoder.heads = 1;
    a.value_encoder.heads = 1;
  });
  prefill_refuses("'key_encoder' has batch = 1, but query's is 2", [](F&, P& a) {
    a.key_encoder.batch = 1;
    a.value_encoder.batch = 1;
  });
  prefill_refuses("'prefix (key_encoder.tokens)[0]' is 3, but must be from 0 to 2", [](F&, P& a) {
    for (auto* view : {&a.query, &a.key, &a.value}) {
      view->tokens = 2;
    }
    a.output.tokens = 2;
  });
  prefill_refuses("'sequences.prefix_lens[1]' is 4, but must be from 0 to 3", [](F& f, P& a) {
    f.list = {0, 4};
    a.sequences.prefix_lens = f.list.data();
  });
  prefill_refuses("'sequences.prefix_lens[0]' is -1, but must be from 0 to 3", [](F& f, P& a) {
    f.list = {-1, 0};
    a.sequences.prefix_lens = f.list.data();
  });
  prefill_refuses<Based>("'key_encoder' has tokens = 2, but what a mask without encoder region reads is 0",
                         [](Fixture<Based>& f, PrefillArgs<Based>& a) {
                           a.key_encoder = view_bthd<const float>(f.q.data(), {batch, 2, heads, 4});
                           a.value_encoder = view_bthd<const float>(f.v.data(), {batch, 2, heads, 8});
                         });
}

TEST_CASE("what is left out is named, not what follows from it") {
  prefill_refuses("'query' is missing: it has dim = 0, but the operator's is 4", [](F&, P& a) { a.query = {}; });
  prefill_refuses("'key' is missing: it has dim = 0, but the operator's is 4", [](F&, P& a) { a.key = {}; });
  prefill_refuses("'value' is missing: it has dim = 0, but the operator's is 8", [](F&, P& a) { a.value = {}; });
  prefill_refuses("'output' is missing: it has dim = 0, but the operator's is 8", [](F&, P& a) { a.output = {}; });
  prefill_refuses("'value_encoder' is missing: it has tokens = 0, but key_encoder's is 3",
                  [](F&, P& a) { a.value_encoder = {}; });
  prefill_refuses("'key_encoder' is missing: it has tokens = 0, but value_encoder's is 3",
                  [](F&, P& a) { a.key_encoder = {}; });
  prefill_refuses(
      "'sequences.prefix_lens[1]' is 2, but must be from 0 to 0 (argument 'key_encoder' is missing or has no tokens)",
      [](F& f, P& a) {
        a.key_encoder = {};
        a.value_encoder = {};
        f.list = {0, 2};
        a.sequences.prefix_lens = f.list.data();
      });
  prefill_refuses(
      "'sequences.cu_encoder_seqlens[1]' is 2, but must be from 0 to 0 (argument 'key_encoder' is missing or has no "
      "tokens)",
      [](F& f, P& a) {
        a.key_encoder = {};
        a.value_encoder = {};
        for (auto* view : {&a.query, &a.key, &a.value}) {
          view->batch = 1;
        }
        a.output.batch = 1;
        f.list = {0, 3, 6};
        f.other = {0, 2, 3};
        a.sequences.count = 2;
        a.sequences.cu_seqlens = f.list.data();
        a.sequences.cu_encoder_seqlens = f.other.data();
      });
  // An encoder region of no tokens is none, whatever else its views say.
  F empty_region;
  auto args = empty_region.prefill_args();
  args.key_encoder.tokens = 0;
  args.value_encoder = {};
  CHECK(prefill(args, Cpu{}).message() == "");
  prefill_refuses<Based>("'value_encoder' has tokens = 2, but what a mask without encoder region reads is 0",
                         [](Fixture<Based>& f, PrefillArgs<Based>& a) {
                           a.value_encoder = view_bthd<const float>(f.v.data(), {batch, 2, heads, 8});
                         });

  F fixture;
  auto accumulated = fixture.accumulate_args();
  accumulated.value = {};
  fixture.refuses(accumulate(accumulated, Cpu{}), "accumulate: argument 'value' is missing: it has dim = 0");
  auto step = fixture.decode_args();
  step.key = {};
  fixture.refuses(decode_step(step, Cpu{}), "decode_step: argument 'key' is missing: it has dim = 0");
  const auto good = fixture.decode_args();
  StagedStepArgs<Config> staged{
      .query = good.query, .key = good.key, .value = good.value, .output = good.output, .state = good.source};
  fixture.refuses(staged_step(staged, Cpu{}), "'staging' is missing: it has sequences = 0, but query's batch is 2");
  const CommitArgs<Config> committed{.accepted_tokens = fixture.list.data(), .source = good.source};
  fixture.refuses(commit(committed, Cpu{}), "'staging' is missing: it has heads = 0, but source's is 2");
}

TEST_CASE("prefill: sequences") {
  prefill_refuses("'sequences.seq_lens[1]' is 7, but must be from 0 to 6", [](F& f, P& a) {
    f.list = {6, 7};
    a.sequences.seq_lens = f.list.data();
  });
  prefill_refuses("'prefix (key_encoder.tokens)[1]' is 3, but must be from 0 to 2", [](F& f, P& a) {
    f.list = {6, 2};
    a.sequences.seq_lens = f.list.data();
  });
  prefill_refuses("'sequences.left_pads[0]' is 7, but must be from 0 to 6", [](F& f, P& a) {
    f.list = {7, 0};
    a.sequences.left_pads = f.list.data();
  });
  prefill_refuses("'sequences.cu_seqlens' is null", [](F&, P& a) { a.sequences.count = 2; });
  prefill_refuses("'query or key' has batch = 2, but the batch of packed sequences is 1", [](F& f, P& a) {
    a.sequences.count = 2;
    a.sequences.cu_seqlens = f.list.data();
  });
  const auto packed = [](F& f, P& a, std::vector<std::int32_t> offsets, std::vector<std::int32_t> encoder_offsets) {
    for (auto* view : {&a.query, &a.key, &a.value, &a.key_encoder, &a.value_encoder}) {
      view->batch = 1;
    }
    a.output.batch = 1;
    f.list = std::move(offsets);
    f.other = std::move(encoder_offsets);
    a.sequences.count = 2;
    a.sequences.cu_seqlens = f.list.data();
    a.sequences.cu_encoder_seqlens = f.other.empty() ? nullptr : f.other.data();
  };
  prefill_refuses("'sequences.cu_seqlens[2]' is 7, but must be from 3 to 6", [&](F& f, P& a) {
    packed(f, a, {0, 3, 7}, {0, 0, 0});
  });
  prefill_refuses("'sequences.cu_seqlens[2]' is 2, but must be from 3 to 6", [&](F& f, P& a) {
    packed(f, a, {0, 3, 2}, {0, 0, 0});
  });
  prefill_refuses("'sequences.cu_seqlens[0]' is -1", [&](F& f, P& a) { packed(f, a, {-1, 3, 6}, {0, 0, 0}); });
  prefill_refuses("'sequences.cu_encoder_seqlens[1]' is 4, but must be from 0 to 3", [&](F& f, P& a) {
    packed(f, a, {0, 3, 6}, {0, 4, 4});
  });
  prefill_refuses("'prefix (sequences.cu_encoder_seqlens)[0]' is 3, but must be from 0 to 2", [&](F& f, P& a) {
    packed(f, a, {0, 2, 6}, {0, 3, 3});
  });
  prefill_refuses("'sequences.count' has value = 0, but must be at least 1", [&](F& f, P& a) {
    packed(f, a, {0, 3, 6}, {0, 0, 0});
    a.sequences.count = 0;
  });
  prefill_refuses("'sequences.cu_encoder_seqlens' is null", [&](F& f, P& a) { packed(f, a, {0, 3, 6}, {}); });
  prefill_refuses("'sequences.seq_lens' is for dense views", [&](F& f, P& a) {
    packed(f, a, {0, 3, 6}, {0, 0, 0});
    a.sequences.seq_lens = f.slots.data();
  });
}

TEST_CASE("prefill: states") {
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
  prefill_refuses("'final_state' has slot_stride = 5, but must be at least",
                  [](F&, P& a) { a.final_state.pool.slot_stride = 5; });
  prefill_refuses("'initial_state' is null", [](F& f, P& a) {
    static const std::uint8_t flags[batch] = {1, 1};
    a.has_initial_state = flags;
    (void)f;
  });
  prefill_refuses("'final_state.slots[1]' is 1, but must be from -1 to 0", [](F&, P& a) {
    a.final_state.pool.slots = 1;
    a.final_state.slots = nullptr;
  });
}

TEST_CASE("prefill: workspace") {
  F fixture;
  const auto args = fixture.prefill_args();
  const std::size_t bytes = prefill_workspace_bytes(args, Cpu{});
  REQUIRE(bytes > 0);
  fixture.refuses(prefill(args, {fixture.workspace.data(), bytes - 1}, Cpu{}),
                  "'workspace' has bytes = " + std::to_string(bytes - 1) + ", but the call needs " + std::to_string(bytes));
  fixture.refuses(prefill(args, {nullptr, bytes}, Cpu{}), "'workspace' is null");
}

TEST_CASE("feature maps with run-time data") {
  struct Favor : Config {
    using FeatureMap = FavorPlus<4, 6>;
  };
  struct Cosine : Config {
    using FeatureMap = CosFormer<4>;
  };
  F fixture;
  const auto spoiled = [&](auto config) {
    using C = decltype(config);
    const auto good = fixture.prefill_args();
    PrefillArgs<C> args{.query = good.query, .key = good.key, .value = good.value, .output = good.output};
    return args;
  };
  fixture.refuses(prefill(spoiled(Favor{}), Cpu{}), "FavorPlus has a null projection");
  auto args = spoiled(Cosine{});
  fixture.refuses(prefill(args, Cpu{}), "CosFormer has horizon = 0, but must be at least 1");
  args.feature_map = {5};
  fixture.refuses(prefill(args, Cpu{}), "reaches position 6, but the feature map has max_position = 5");
  args.feature_map = {8};
  args.sequences.first_positions = fixture.list.data();
  fixture.list = {2, 3};
  fixture.refuses(prefill(args, Cpu{}), "sequence 1 reaches position 9, but the feature map has max_position = 8");
  fixture.list = {-1, 0};
  fixture.refuses(prefill(args, Cpu{}), "'sequences.first_positions[0]' is -1, but must be from 0 to 8");

  // A position that is left out would silently be the first one.
  using CosineFormat = StateFormatOf<Cosine>;
  std::vector<float> states(static_cast<std::size_t>(2 * heads * CosineFormat::head_elements));
  args.sequences.first_positions = nullptr;
  args.initial_state = {view_pool<CosineFormat>(states.data(), 2, heads)};
  fixture.refuses(prefill(args, Cpu{}), "'sequences.first_positions (the feature map needs the position)' is null");
  DecodeArgs<Cosine> step{.query = args.query, .key = args.key, .value = args.value, .output = args.output};
  step.source = args.initial_state;
  step.feature_map = {8};
  fixture.refuses(decode_step(step, Cpu{}), "'first_positions (the feature map needs the position)' is null");
  step.first_positions = fixture.list.data();
  fixture.list = {0, 3};
  fixture.refuses(decode_step(step, Cpu{}), "'first_positions[1]' is 3, but must be from 0 to 2");
}

TEST_CASE("accumulate") {
  F fixture;
  const auto refuses = [&](const std::string& part, const auto& spoil) {
    auto args = fixture.accumulate_args();
    spoil(args);
    fixture.refuses(accumulate(args, Cpu{}), part);
  };
  using A = AccumulateArgs<Config>;
  refuses("accumulate: argument 'final_state' is null", [](A& a) { a.final_state = {}; });
  refuses("'value' has tokens = 5, but key's is 6", [](A& a) { a.value.tokens = 5; });
  refuses("'value' has heads = 1, but key's is 2", [](A& a) { a.value.heads = 1; });
  refuses("'key' has dim = 8, but the operator's is 4", [](A& a) { a.key.dim = 8; });
  fixture.list = {0, 7};
  refuses("'sequences.left_pads[1]' is 7, but must be from 0 to 6",
          [&](A& a) { a.sequences.left_pads = fixture.list.data(); });
}

TEST_CASE("decode_step, staged_step and commit") {
  F fixture;
  const auto refuses = [&](const std::string& part, const auto& spoil) {
    auto args = fixture.decode_args();
    spoil(args);
    fixture.refuses(decode_step(args, Cpu{}), part);
  };
  using D = DecodeArgs<Config>;
  refuses("decode_step: argument 'source' is null", [](D& a) { a.source = {}; });
  refuses("'output' has tokens = 1, but query's is 6", [](D& a) { a.output.tokens = 1; });
  fixture.list = {0, 5};
  refuses("'source.slots[1]' is 5, but must be from -1 to 2", [&](D& a) { a.source.slots = fixture.list.data(); });
  fixture.list = {2, 2};
  refuses("'destination.slots[0]' and 'destination.slots[1]' share the state of slot 2", [&](D& a) {
    a.destination = {a.source.pool, fixture.list.data()};
  });
  fixture.list = {1, 2};
  refuses("'destination.slots[0]' and 'source.slots[1]' share the state of slot 1", [&](D& a) {
    a.destination = {a.source.pool, fixture.list.data()};
  });
  refuses("'query' has heads = 3", [](D& a) {
    a.query.heads = 3;
    a.output.heads = 3;
  });
  fixture.list = {-1, 0};
  refuses("'first_positions[0]' is -1", [&](D& a) { a.first_positions = fixture.list.data(); });
  fixture.list = {2, 2};
  refuses("'source.slots[0]' and 'source.slots[1]' share the state of slot 2",
          [&](D& a) { a.source.slots = fixture.list.data(); });
  refuses("'destination' is null", [&](D& a) { a.destination.slots = fixture.list.data(); });
  {
    const auto args = fixture.decode_args();
    const std::size_t bytes = decode_workspace_bytes(args, Cpu{});
    fixture.refuses(decode_step(args, {fixture.workspace.data(), bytes - 1}, Cpu{}), "'workspace' has bytes = ");
  }

  std::vector<float> staged(static_cast<std::size_t>(batch * 8 * heads * 12), 7.0F);
  const auto good = fixture.decode_args();
  StagedStepArgs<Config> staged_args{.query = good.query, .key = good.key, .value = good.value, .output = good.output};
  staged_args.state = good.source;
  staged_args.staging = {staged.data(), batch, 8, heads};
  const auto staged_refuses = [&](const std::string& part, const auto& spoil) {
    auto args = staged_args;
    spoil(args);
    fixture.refuses(staged_step(args, Cpu{}), part);
    CHECK(staged == std::vector<float>(staged.size(), 7.0F));
  };
  using S = StagedStepArgs<Config>;
  staged_refuses("'staging' has tokens left = 5, but must be at least 6", [](S& a) { a.already_staged = 3; });
  staged_refuses("'staging' has sequences = 1, but query's batch is 2", [](S& a) { a.staging.sequences = 1; });
  staged_refuses("'staging' has heads = 3, but key's heads is 2", [](S& a) { a.staging.heads = 3; });
  staged_refuses("'staging' has heads_apart = 1, but must be at least 2", [](S& a) { a.staging.heads_apart = 1; });
  staged_refuses("'staging' is null", [](S& a) { a.staging.data = nullptr; });
  staged_refuses("'already_staged' has value = -1", [](S& a) { a.already_staged = -1; });

  const auto commit_refuses = [&](const std::string& part, const auto& spoil) {
    CommitArgs<Config> args;
    args.staging = staged_args.staging;
    args.source = good.source;
    fixture.list = {1, 2};
    args.accepted_tokens = fixture.list.data();
    spoil(args);
    fixture.refuses(commit(args, Cpu{}), part);
  };
  using C = CommitArgs<Config>;
  commit_refuses("commit: argument 'accepted_tokens' is null", [](C& a) { a.accepted_tokens = nullptr; });
  commit_refuses("'accepted_tokens[1]' is 9, but must be from 0 to 8", [&](C&) { fixture.list = {0, 9}; });
  commit_refuses("'accepted_tokens[0]' is -1, but must be from 0 to 8", [&](C&) { fixture.list = {-1, 0}; });
  commit_refuses("'source' is null", [](C& a) { a.source = {}; });
}

TEST_CASE("state operations") {
  F fixture;
  const StateSlots<Format> good{view_pool<Format>(fixture.states.data(), 3, heads)};
  fixture.refuses(clear_states(good, -1, Cpu{}), "clear_states: argument 'count' has value = -1");
  fixture.refuses(clear_states(good, 4, Cpu{}), "'states[3]' is 3, but must be from -1 to 2");
  fixture.refuses(clear_states(StateSlots<Format>{}, 0, Cpu{}), "'states' is null");
  fixture.refuses(copy_states(StateSlots<Format>{}, good, 1, Cpu{}), "'source' is null");
  fixture.refuses(copy_states(good, StateSlots<Format>{}, 1, Cpu{}), "'destination' is null");
  StateSlots<Format> narrow = good;
  narrow.pool.heads = 1;
  fixture.refuses(copy_states(good, narrow, 1, Cpu{}), "'destination' has heads = 1");
  fixture.list = {1, 1};
  const StateSlots<Format> doubled{good.pool, fixture.list.data()};
  fixture.refuses(copy_states(good, doubled, 2, Cpu{}), "share the state of slot 1");
  fixture.refuses(merge_states(good, doubled, 2, Cpu{}), "share the state of slot 1");
  fixture.refuses(clear_states(doubled, 2, Cpu{}), "share the state of slot 1");
  // The same memory through a pool that begins elsewhere.
  const StateSlots<Format> shifted{view_pool<Format>(good.pool.head(1, 0), 2, heads)};
  fixture.refuses(copy_states(good, shifted, 2, Cpu{}), "share the state of slot 0");
  using Dense = StateFormat<Taylor2<4, DensePacking>, 8, float>;
  const StateSlots<Dense> same_place{view_pool<Dense>(fixture.states.data(), 1, heads)};
  fixture.refuses(copy_states(good, same_place, 1, Cpu{}), "overlap, but their formats differ");
}

TEST_CASE("dense exchange and saving") {
  F fixture;
  const StateSlots<Format> good{view_pool<Format>(fixture.states.data(), 3, heads)};
  std::vector<float> sums(static_cast<std::size_t>(3 * heads * 21 * 8), 7.0F);
  std::vector<float> normaliser(static_cast<std::size_t>(3 * heads * 21), 7.0F);
  const auto dense = view_dense_states<Format>(sums.data(), normaliser.data(), heads);
  auto spoiled = dense;
  spoiled.sums = nullptr;
  fixture.refuses(export_states(good, spoiled, 3, Cpu{}), "'destination.sums' is null");
  fixture.refuses(import_states(spoiled, good, 3, Cpu{}), "'source.sums' is null");
  spoiled = dense;
  spoiled.row_stride = 0;
  fixture.refuses(export_states(good, spoiled, 3, Cpu{}), "_stride = 0, but must be at least 1");
  spoiled = dense;
  spoiled.normaliser_head_stride = 20;
  fixture.refuses(export_states(good, spoiled, 3, Cpu{}),
                  "'destination' has normaliser_head_stride = 20, but must be at least 21");
  fixture.list = {1, 1};
  fixture.refuses(import_states(dense, StateSlots<Format>{good.pool, fixture.list.data()}, 2, Cpu{}),
                  "share the state of slot 1");
  CHECK(sums == std::vector<float>(sums.size(), 7.0F));
  std::vector<std::byte> buffer(static_cast<std::size_t>(saved_states_bytes<Format>(3, heads)) - 1);
  fixture.refuses(save_states(good, 3, buffer, Cpu{}), "'buffer' has bytes = " + std::to_string(buffer.size()));
}

TEST_CASE("padding rows may hold anything, and skipped pairs share nothing") {
  F fixture;
  auto args = fixture.prefill_args();
  fixture.slots = {0, skip_slot};
  std::vector<std::int32_t> garbage{3, 1 << 30};
  args.sequences.prefix_lens = garbage.data();
  std::vector<std::int32_t> pads{1, -5};
  args.sequences.left_pads = pads.data();
  args.sequences.first_positions = pads.data();
  // Sequence 1 would read the slot that sequence 0 writes, were it not skipped.
  std::vector<std::int32_t> initial{1, 0};
  args.initial_state = {args.final_state.pool, initial.data()};
  CHECK(prefill(args, Cpu{}).message() == "");

  std::vector<float> staged(static_cast<std::size_t>(batch * 2 * heads * 12));
  CommitArgs<Config> commit_args;
  commit_args.staging = {staged.data(), batch, 2, heads};
  commit_args.source = {args.final_state.pool, fixture.slots.data()};
  std::vector<std::int32_t> accepted{2, -7};
  commit_args.accepted_tokens = accepted.data();
  CHECK(commit(commit_args, Cpu{}).message() == "");

  // A slot that is not read because the sequence starts empty is no conflict, whatever it is.
  fixture.slots = {0, 1};
  args.sequences = {};
  initial = {skip_slot, 0};
  const std::vector<std::uint8_t> has_initial_state{0, 0};
  args.has_initial_state = has_initial_state.data();
  std::fill(fixture.y.begin(), fixture.y.end(), 0.0F);
  CHECK(prefill(args, Cpu{}).message() == "");
  CHECK(fixture.y[0] != 0);
}

TEST_CASE("the size of a workspace needs no tensors") {
  F fixture;
  auto args = fixture.prefill_args();
  const std::size_t bytes = prefill_workspace_bytes(args, Cpu{});
  for (auto* view : {&args.query, &args.key, &args.value, &args.key_encoder, &args.value_encoder}) {
    view->data = nullptr;
  }
  args.output.data = nullptr;
  CHECK(prefill_workspace_bytes(args, Cpu{}) == bytes);
}

}  // namespace
}  // namespace jrt::test
