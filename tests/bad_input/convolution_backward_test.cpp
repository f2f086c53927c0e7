// SPDX-License-Identifier: Apache-2.0
// One case per documented error of the convolution's gradients: a clear sentence with the argument and both values, and
// nothing written.
#include <doctest/doctest.h>

#include <initializer_list>
#include <jrt/backward.hpp>
#include <jrt/cpu.hpp>
#include <jrt/mixer/gated_convolution.hpp>
#include <string>
#include <vector>

namespace jrt::test {
namespace {

using Config = GatedConvolution<float, 3>;
using Args = BackwardArgs<Config>;

constexpr std::int64_t batch = 2;
constexpr std::int64_t tokens = 6;
constexpr std::int64_t channels = 5;

/// A good call; tests spoil one thing.
struct Fixture {
  std::vector<float> u = std::vector<float>(batch * tokens * channels + 1, 0.5F);
  std::vector<float> du = std::vector<float>(batch * tokens * channels + 1, 7.0F);
  std::vector<float> dg = std::vector<float>(batch * tokens * channels + 1, 7.0F);
  std::vector<float> w = std::vector<float>(channels * 3 + 1, 0.25F);
  std::vector<float> dw = std::vector<float>(channels * 3 + 1, 7.0F);
  std::vector<float> db = std::vector<float>(channels + 1, 7.0F);
  std::vector<float> initial = std::vector<float>(3 * channels * 2, 0.5F);
  std::vector<float> states = std::vector<float>(3 * channels * 2 + 1, 7.0F);
  std::vector<std::int32_t> slots{0, 1};
  std::vector<std::int32_t> list{0, 0, 0};
  Args args;

  Fixture() {
    constexpr TensorShape shape{batch, tokens, 1, channels};
    args.input = view_bthd(u.data(), shape);
    args.gate = view_bthd(u.data(), shape);
    args.output_gradient = view_bthd(u.data(), shape);
    args.weight = w.data();
    args.bias = w.data();
    args.initial_state = {view_pool<Args::Format>(initial.data(), 3, channels)};
    args.final_state_gradient = {view_pool<Args::GradientFormat>(states.data(), 3, channels), slots.data()};
    args.input_gradient = view_bthd(du.data(), shape);
    args.gate_gradient = view_bthd(dg.data(), shape);
    args.weight_gradient = dw.data();
    args.bias_gradient = db.data();
    args.initial_state_gradient = args.final_state_gradient;
  }

  bool untouched() const {
    for (const auto* written : {&du, &dg, &dw, &db, &states}) {
      if (*written != std::vector<float>(written->size(), 7.0F)) {
        return false;
      }
    }
    return true;
  }
};

void refuses(const std::string& part, void (*spoil)(Fixture&, Args&)) {
  CAPTURE(part);
  Fixture fixture;
  spoil(fixture, fixture.args);
  std::vector<std::byte> memory(1 << 12);
  for (const Status& status :
       {backward(fixture.args, Cpu{}), backward(fixture.args, {memory.data(), memory.size()}, Cpu{})}) {
    INFO(std::string(status.message()));
    CHECK(status.code() == StatusCode::invalid_argument);
    CHECK(status.message().find("backward: ") == 0);
    CHECK(status.message().find(part) != std::string_view::npos);
    CHECK(fixture.untouched());
  }
}

template <class Pointer>
Pointer one_byte_on(Pointer pointer) {
  return reinterpret_cast<Pointer>(reinterpret_cast<std::uintptr_t>(pointer) + 1);
}

TEST_CASE("the good call is good, in the memory that it asks for") {
  Fixture fixture;
  std::vector<std::byte> memory(backward_workspace_bytes(fixture.args, Cpu{}));
  CHECK(backward(fixture.args, {memory.data(), memory.size()}, Cpu{}).ok());
  CHECK(fixture.du[0] != 7.0F);
  CHECK(fixture.dg[0] != 7.0F);
  CHECK(fixture.dw[0] != 7.0F);
  CHECK(fixture.db[0] != 7.0F);
  CHECK(fixture.states[0] != 7.0F);
}

TEST_CASE("the workspace") {
  Fixture fixture;
  std::vector<std::byte> memory(backward_workspace_bytes(fixture.args, Cpu{}) - 1);
  const Status small = backward(fixture.args, {memory.data(), memory.size()}, Cpu{});
  CHECK(small.message().find("'workspace' has bytes = ") != std::string_view::npos);
  CHECK(backward(fixture.args, {nullptr, memory.size() + 1}, Cpu{}).message().find("'workspace' is null") !=
        std::string_view::npos);
  CHECK(fixture.untouched());
  fixture.args.weight_gradient = nullptr;
  fixture.args.bias_gradient = nullptr;
  CHECK(backward_workspace_bytes(fixture.args, Cpu{}) == 0);
  CHECK(backward(fixture.args, {}, Cpu{}).ok());
}

TEST_CASE("inputs and weights") {
  using F = Fixture;
  refuses("'input' is null", [](F&, Args& a) { a.input.data = nullptr; });
  refuses("'input' is missing: it has heads = 0, but the number of a convolution's is 1",
          [](F&, Args& a) { a.input = {}; });
  refuses("'input' has heads = 2, but the number of a convolution's is 1", [](F&, Args& a) { a.input.heads = 2; });
  refuses("'input' has tokens = -1, but must be at least 0", [](F&, Args& a) { a.input.tokens = -1; });
  refuses("'input' has token_stride = -5, but must be at least 0", [](F&, Args& a) { a.input.token_stride = -5; });
  refuses("'input' points 1 bytes past", [](F&, Args& a) { a.input.data = one_byte_on(a.input.data); });
  refuses("'input' has dim = 0, but must be at least 1", [](F&, Args& a) {
    a.input.dim = a.gate.dim = a.output_gradient.dim = a.input_gradient.dim = a.gate_gradient.dim = 0;
  });
  refuses("'gate' is null", [](F&, Args& a) { a.gate.data = nullptr; });
  refuses("'gate' is missing: it has heads = 0, but that of gate_gradient is 1", [](F&, Args& a) { a.gate = {}; });
  refuses("'gate' has dim = 4, but input's is 5", [](F&, Args& a) { a.gate.dim = 4; });
  refuses("'gate' has tokens = 5, but input's is 6", [](F&, Args& a) { a.gate.tokens = 5; });
  refuses("'gate' has batch = 1, but input's is 2", [](F&, Args& a) { a.gate.batch = 1; });
  refuses("'output_gradient' is missing: it has heads = 0, but the number of a convolution's is 1",
          [](F&, Args& a) { a.output_gradient = {}; });
  refuses("'output_gradient' is null", [](F&, Args& a) { a.output_gradient.data = nullptr; });
  refuses("'output_gradient' has heads = 2, but the number of a convolution's is 1",
          [](F&, Args& a) { a.output_gradient.heads = 2; });
  refuses("'output_gradient' has dim = 6, but input's is 5", [](F&, Args& a) { a.output_gradient.dim = 6; });
  refuses("'output_gradient' has tokens = 7, but input's is 6", [](F&, Args& a) { a.output_gradient.tokens = 7; });
  refuses("'output_gradient' has batch = 1, but input's is 2", [](F&, Args& a) { a.output_gradient.batch = 1; });
  refuses("'output_gradient' points 1 bytes past",
          [](F&, Args& a) { a.output_gradient.data = one_byte_on(a.output_gradient.data); });
  refuses("'weight' is null", [](F&, Args& a) { a.weight = nullptr; });
  refuses("'weight' points 1 bytes past an aligned address, but its alignment is 4",
          [](F&, Args& a) { a.weight = one_byte_on(a.weight); });
  refuses("'bias' points 1 bytes past", [](F&, Args& a) { a.bias = one_byte_on(a.bias); });
}

TEST_CASE("gradients of inputs, gates and weights") {
  using F = Fixture;
  refuses("'input_gradient' is null", [](F&, Args& a) { a.input_gradient.data = nullptr; });
  refuses("'input_gradient' has heads = 2, but the number of a convolution's is 1",
          [](F&, Args& a) { a.input_gradient.heads = 2; });
  refuses("'input_gradient' has dim = 4, but input's is 5", [](F&, Args& a) { a.input_gradient.dim = 4; });
  refuses("'input_gradient' has tokens = 5, but input's is 6", [](F&, Args& a) { a.input_gradient.tokens = 5; });
  refuses("'input_gradient' has batch = 1, but input's is 2", [](F&, Args& a) { a.input_gradient.batch = 1; });
  refuses("'input_gradient' has token_stride = 4, but must be at least 5",
          [](F&, Args& a) { a.input_gradient.token_stride = 4; });
  refuses("'input_gradient' has batch_stride = 29, but must be at least 30",
          [](F&, Args& a) { a.input_gradient.batch_stride = 29; });
  refuses("'input_gradient' points 1 bytes past",
          [](F&, Args& a) { a.input_gradient.data = one_byte_on(a.input_gradient.data); });
  refuses("'gate_gradient' is null", [](F&, Args& a) { a.gate_gradient.data = nullptr; });
  refuses("'gate_gradient' has heads = 2, but the number of a convolution's is 1",
          [](F&, Args& a) { a.gate_gradient.heads = 2; });
  refuses("'gate_gradient' has dim = 4, but input's is 5", [](F&, Args& a) { a.gate_gradient.dim = 4; });
  refuses("'gate_gradient' has tokens = 7, but input's is 6", [](F&, Args& a) { a.gate_gradient.tokens = 7; });
  refuses("'gate_gradient' has token_stride = 0, but must be at least 5",
          [](F&, Args& a) { a.gate_gradient.token_stride = 0; });
  refuses("'gate_gradient' points 1 bytes past",
          [](F&, Args& a) { a.gate_gradient.data = one_byte_on(a.gate_gradient.data); });
  refuses("'weight_gradient' points 1 bytes past an aligned address, but its alignment is 4",
          [](F&, Args& a) { a.weight_gradient = one_byte_on(a.weight_gradient); });
  refuses("'bias_gradient' points 1 bytes past", [](F&, Args& a) { a.bias_gradient = one_byte_on(a.bias_gradient); });
}

TEST_CASE("sequences") {
  using F = Fixture;
  refuses("'sequences.left_pads[1]' is 7, but must be from 0 to 6", [](F& f, Args& a) {
    f.list = {0, 7};
    a.sequences.left_pads = f.list.data();
  });
  refuses("'sequences.seq_lens[0]' is -1, but must be from 0 to 6", [](F& f, Args& a) {
    f.list = {-1, 6};
    a.sequences.seq_lens = f.list.data();
  });
  refuses("'sequences.cu_seqlens[2]' is 3, but must be from 5 to 6", [](F& f, Args& a) {
    f.list = {0, 5, 3};
    a.input.batch = a.gate.batch = a.output_gradient.batch = a.input_gradient.batch = a.gate_gradient.batch = 1;
    a.sequences.count = 2;
    a.sequences.cu_seqlens = f.list.data();
  });
  refuses("has batch = 2, but the batch of packed sequences is 1", [](F& f, Args& a) {
    a.sequences.count = 2;
    a.sequences.cu_seqlens = f.list.data();
  });
}

TEST_CASE("states and their gradients") {
  using F = Fixture;
  refuses("'initial_state' is null", [](F&, Args& a) {
    static constexpr std::uint8_t has[] = {1, 1};
    a.initial_state = {};
    a.has_initial_state = has;
  });
  refuses("'initial_state' has heads = 4", [](F&, Args& a) { a.initial_state.pool.heads = 4; });
  refuses("'initial_state.slots[1]' is 3, but must be from -1 to 2", [](F& f, Args& a) {
    f.list = {0, 3};
    a.initial_state.slots = f.list.data();
  });
  refuses("'final_state_gradient' is null", [](F&, Args& a) { a.final_state_gradient.pool.data = nullptr; });
  refuses("'final_state_gradient' has heads = 4", [](F&, Args& a) { a.final_state_gradient.pool.heads = 4; });
  refuses("'final_state_gradient' points 1 bytes past",
          [](F&, Args& a) { a.final_state_gradient.pool.data = one_byte_on(a.final_state_gradient.pool.data); });
  refuses("'final_state_gradient.slots[0]' is -2, but must be from -1 to 2", [](F& f, Args& a) {
    f.list = {-2, 1};
    a.final_state_gradient.slots = f.list.data();
  });
  refuses("'initial_state_gradient' is null", [](F&, Args& a) { a.initial_state_gradient.pool.data = nullptr; });
  refuses("'initial_state_gradient' has heads = 6", [](F&, Args& a) { a.initial_state_gradient.pool.heads = 6; });
  refuses("'initial_state_gradient' has slot_stride = 9, but must be at least 10",
          [](F&, Args& a) { a.initial_state_gradient.pool.slot_stride = 9; });
  refuses("'initial_state_gradient.slots[1]' is 3, but must be from -1 to 2", [](F& f, Args& a) {
    f.list = {0, 3};
    a.initial_state_gradient.slots = f.list.data();
  });
  refuses("'initial_state_gradient.slots[0]' and 'initial_state_gradient.slots[1]' share the state of slot 2",
          [](F& f, Args& a) {
            f.list = {2, 2};
            a.initial_state_gradient.slots = f.list.data();
          });
  refuses("'initial_state_gradient.slots[0]' and 'final_state_gradient.slots[1]' share the state of slot 1",
          [](F& f, Args& a) {
            f.list = {1, 0};
            a.initial_state_gradient.slots = f.list.data();
          });
  refuses("'initial_state_gradient.slots[0]' and 'initial_state.slots[1]' share the state of slot 1", [](F& f, Args& a) {
    f.list = {1, 0};
    a.final_state_gradient = {};
    a.initial_state.pool = a.initial_state_gradient.pool;
    a.initial_state_gradient.slots = f.list.data();
  });
}

}  // namespace
}  // namespace jrt::test
