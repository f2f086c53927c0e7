// SPDX-License-Identifier: Apache-2.0
#include <jrt/state_description.hpp>

#include <doctest/doctest.h>

#include <jrt/cpu/linear_attention.hpp>
#include <jrt/mixer/gated_convolution.hpp>
#include <jrt/mixer/hybrid_attention.hpp>
#include <jrt/mixer/stack.hpp>
#include <jrt/mixer/window_attention.hpp>
#include <string>
#include <vector>

namespace jrt::test {
namespace {

using Linear = PrefixLinearAttention<BFloat16, 16, 64>;
using Window = SlidingWindowAttention<BFloat16, 64, 128>;
using Convolution = GatedConvolution<float, 3>;
using Hybrid = HybridAttention<Linear, WindowBeside<Linear, 128>>;
using Model = Stack<Layer<Convolution, 1024>, Layer<Linear, 16>>;

TEST_CASE("a description has the numbers that the format has") {
  constexpr StateDescription linear = describe_state<Linear>(4);
  static_assert(linear.rows == 153 && linear.columns == 64 && linear.input_dim == 16 && linear.heads == 4);
  CHECK(linear.name == std::string("taylor2/symmetric"));
  CHECK(linear.scalar == std::string("float32"));
  CHECK(linear.scalar_bytes == 4);
  CHECK(linear.slot_bytes == StateFormatOf<Linear>::slot_bytes(4));
  CHECK(linear.slot_bytes == 4 * linear.head_bytes);
  CHECK(linear.staged_bytes == 4 * (16 + 64) * 2);
  CHECK(linear.mergeable);

  const StateDescription window = describe_state<Window>(2);
  CHECK(window.name == std::string("sliding window"));
  CHECK(window.rows == 129);
  CHECK(window.alignment == 16);
  CHECK(window.staged_bytes == StagingView<Window>{nullptr, 1, 1, 2}.bytes());
  CHECK(!window.mergeable);

  const StateDescription convolution = describe_state<Convolution>(1024);
  CHECK(convolution.slot_bytes == 1024 * 2 * 4);
  CHECK(convolution.staged_bytes == 1024 * 4);

  const StateDescription hybrid = describe_state<Hybrid>(3);
  CHECK(hybrid.slot_bytes == StateFormatOf<Hybrid>::slot_bytes(3));
  CHECK(hybrid.scalar_bytes == 8);

  const StateDescription model = describe_state<Model>();
  CHECK(model.slot_bytes == Model::slot_bytes());
  CHECK(model.scalar == std::string("mixed"));
  CHECK(model.saved_bytes == saved_states_bytes<Model>(1, 1));
  CHECK(!model.mergeable);
}

TEST_CASE("no bytes are promised for numbers of heads that cannot be") {
  for (const std::int64_t heads : {std::int64_t{0}, std::int64_t{-1}, INT64_MAX, INT64_MAX / 1000}) {
    const StateDescription state = describe_state<Linear>(heads);
    CHECK(state.heads == 0);
    CHECK(state.slot_bytes == 0);
    CHECK(state.saved_bytes == 0);
    CHECK(state.head_bytes == StateFormatOf<Linear>::slot_bytes(1));
  }
}

TEST_CASE("a cache allocated by a description alone is a pool") {
  constexpr std::int64_t slots = 3;
  constexpr std::int64_t heads = 2;
  const StateDescription state = describe_state<Linear>(heads);
  // The manager's own data lies between the slots.
  const std::int64_t apart = state.slot_bytes + 5 * static_cast<std::int64_t>(state.alignment);
  std::vector<float> memory(static_cast<std::size_t>(slots * apart) / sizeof(float), 1);
  const StateSlots<StateFormatOf<Linear>> pool{
      {memory.data(), slots, heads, apart / static_cast<std::int64_t>(state.scalar_bytes)}};
  CHECK(clear_states(pool, slots, Cpu{}).ok());
  std::vector<std::byte> saved(static_cast<std::size_t>(state.saved_bytes));
  CHECK(save_states(pool, 1, saved, Cpu{}).ok());
  SavedStatesHeader header;
  std::memcpy(&header, saved.data(), sizeof header);
  CHECK(header.feature_map == std::string(state.name));
  CHECK(header.scalar == std::string(state.scalar));
  for (std::int64_t i = 0; i < slots * apart / 4; ++i) {
    REQUIRE(memory[static_cast<std::size_t>(i)] == (i % (apart / 4) < state.slot_bytes / 4 ? 0 : 1));
  }
}

}  // namespace
}  // namespace jrt::test
