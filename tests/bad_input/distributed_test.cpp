// SPDX-License-Identifier: Apache-2.0
// Every error of the context-parallel calls: the message, and that nothing was written or exchanged.
#include <doctest/doctest.h>

#include <chrono>
#include <cstdint>
#include <jrt/distributed/cpu.hpp>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "support/linear_problem.hpp"
#include "support/tensor.hpp"

namespace jrt::test {
namespace {

using Linear = PrefixLinearAttention<double, 4, 4>;
using Causal = BasedLinearAttention<double, 4, 4>;
using Window = SlidingWindowAttention<double, 4, 3>;
using WideWindow = SlidingWindowAttention<double, 4, 63>;
using Hybrid = HybridAttention<Linear, WindowBeside<Linear, 3>>;

/// Rank 0 of two that counts exchanges.
struct Counting {
  int of_rank = 0;
  int ranks = 2;
  int exchanges = 0;
  [[nodiscard]] int rank() const { return of_rank; }
  [[nodiscard]] int size() const { return ranks; }
  Status all_gather(const void* /*send*/, void* /*receive*/, std::size_t /*bytes*/, const Cpu<>& /*on*/) {
    ++exchanges;
    return {};
  }
  Status exchange(std::span<const OutgoingBytes> /*to*/, std::span<const IncomingBytes> /*from*/, const Cpu<>& /*on*/) {
    ++exchanges;
    return {};
  }
  void abort() { ++exchanges; }
};

constexpr std::int64_t tokens_of_ranks[] = {6, 5};
constexpr std::int64_t encoder_of_ranks[] = {4, 0};
constexpr std::uint8_t continues[] = {1};

ContextLayout layout_of(bool encoder, bool with_state) {
  ContextLayout layout;
  layout.ranks = 2;
  layout.tokens = tokens_of_ranks;
  layout.encoder_tokens = encoder ? encoder_of_ranks : nullptr;
  layout.has_initial_state = with_state ? continues : nullptr;
  return layout;
}

/// Rank 0's tensors.
struct Call {
  Tensor<double> input = random_tensor<double>({1, 6, 2, 4}, 3);
  Tensor<double> encoder = random_tensor<double>({1, 4, 2, 4}, 4);
  Tensor<double> output = zero_tensor<double>({1, 6, 2, 4});
  Counting communicator;
  std::vector<std::byte> memory = std::vector<std::byte>(std::size_t{1} << 20);
  StatePool<StateFormatOf<Linear>> pool;

  Call() { JRT_REQUIRE_OK(StatePool<StateFormatOf<Linear>>::allocate(1, 2, pool)); }

  template <class Args>
  void set(Args& args) {
    args.local.query = view_of(input);
    args.local.key = view_of(input);
    args.local.value = view_of(input);
    args.local.output = view_of(output);
    if constexpr (requires { args.local.key_encoder; }) {
      args.local.key_encoder = view_of(encoder);
      args.local.value_encoder = view_of(encoder);
    }
  }
};

template <class Config>
ContextPlan<Config> plan_of(const ContextLayout& layout, int rank = 0) {
  ContextPlan<Config> plan;
  JRT_REQUIRE_OK(ContextPlan<Config>::make(layout, rank, Cpu{}, plan));
  return plan;
}

/// The message of a prefill that `change(args, call)` has spoiled.
template <class Change>
std::string prefill_message(const Change& change, bool with_state = false) {
  Call call;
  const auto plan = plan_of<Linear>(layout_of(true, with_state));
  ContextPrefillArgs<Linear> args;
  args.plan = &plan;
  call.set(args);
  if (with_state) {
    args.local.initial_state = {call.pool.view()};
  }
  change(args, call);
  const Status status = prefill(args, call.communicator, {call.memory.data(), call.memory.size()}, Cpu{});
  CHECK(status.code() == StatusCode::invalid_argument);
  CHECK(call.communicator.exchanges == 0);
  CHECK(call.output == zero_tensor<double>({1, 6, 2, 4}));
  return std::string(status.message());
}

TEST_CASE("plans") {
  CHECK(prefill_message([](auto& args, auto&) { args.plan = nullptr; }) == "prefill: argument 'plan' is null.");
  const ContextPlan<Linear> none;
  CHECK(prefill_message([&](auto& args, auto&) { args.plan = &none; }) ==
        "prefill: argument 'plan (ContextPlan::make has not been called)' has ranks = 0, but must be at least 1.");
  CHECK(prefill_message([](auto&, auto& call) { call.communicator.ranks = 3; }) ==
        "prefill: argument 'plan' has ranks = 2, but the communicator's size is 3.");
  CHECK(prefill_message([](auto&, auto& call) { call.communicator.of_rank = 1; }) ==
        "prefill: argument 'plan' has rank = 0, but the communicator's rank is 1.");
  Call call;
  const auto plan = plan_of<Causal>(layout_of(true, false));
  ContextPrefillArgs<Causal> args;
  args.plan = &plan;
  call.set(args);
  const Status status = prefill(args, call.communicator, {call.memory.data(), call.memory.size()}, Cpu{});
  CHECK(status.message() ==
        "prefill: argument 'plan' has encoder tokens = 4, but what a mask without encoder region reads is 0.");
}

TEST_CASE("tensors") {
  const auto fewer = [](auto member) {
    return prefill_message([&](auto& args, auto&) { (args.local.*member).tokens = 3; });
  };
  using Args = PrefillArgs<Linear>;
  const std::string rest = " has tokens = 3, but what the plan's layout gives this rank is ";
  CHECK(fewer(&Args::query) == "prefill: argument 'local.query'" + rest + "6.");
  CHECK(fewer(&Args::key) == "prefill: argument 'local.key'" + rest + "6.");
  CHECK(fewer(&Args::value) == "prefill: argument 'local.value'" + rest + "6.");
  CHECK(fewer(&Args::output) == "prefill: argument 'local.output'" + rest + "6.");
  CHECK(fewer(&Args::key_encoder) == "prefill: argument 'local.key_encoder'" + rest + "4.");
  CHECK(fewer(&Args::value_encoder) == "prefill: argument 'local.value_encoder'" + rest + "4.");
  CHECK(prefill_message([](auto& args, auto&) { args.local.query.batch = 2; }) ==
        "prefill: argument 'local.query' has batch = 2, but the batch of packed pieces is 1.");
  CHECK(prefill_message([](auto& args, auto&) { args.local.key.heads = 0; }) ==
        "prefill: argument 'local.key' has heads = 0, but must be at least 1.");
  // What the mixer's own call finds.
  CHECK(prefill_message([](auto& args, auto&) { args.local.value.dim = 3; }) ==
        "prefill: argument 'value' has dim = 3, but the operator's is 4.");
}

TEST_CASE("sequences, states and workspace") {
  const std::int32_t pads[] = {1};
  const std::string given = prefill_message([&](auto& args, auto&) { args.local.sequences.left_pads = pads; });
  CHECK(given.find("'local.sequences' and 'local.has_initial_state' must be left out") != std::string::npos);
  CHECK(prefill_message([](auto& args, auto&) { args.local.has_initial_state = continues; }) == given);
  CHECK(prefill_message([](auto& args, auto&) { args.local.initial_state = {}; }, true) ==
        "prefill: argument 'local.initial_state' is null.");
  CHECK(prefill_message([](auto& args, auto&) { args.local.initial_state.pool.slots = 0; }, true) ==
        "prefill: argument 'local.initial_state' has slots = 0, but must be at least 1.");
  CHECK(prefill_message([](auto& args, auto& call) {
          args.local.final_state = {call.pool.view()};
          args.local.final_state.pool.slots = 0;
        }) == "prefill: argument 'local.final_state' has slots = 0, but must be at least 1.");
  CHECK(prefill_message([](auto&, auto& call) {
          call.memory.resize(100);
        }).find("prefill: argument 'workspace' has bytes = 100, but the call needs ") == 0);
}

TEST_CASE("gradients") {
  Call call;
  const auto message = [&](const Status& status) {
    CHECK(status.code() == StatusCode::invalid_argument);
    CHECK(call.communicator.exchanges == 0);
    return std::string(status.message());
  };
  const Workspace workspace{call.memory.data(), call.memory.size()};
  const auto plan = plan_of<Linear>(layout_of(true, false));
  ContextBackwardArgs<Linear> args;
  args.plan = &plan;
  call.set(args);
  CHECK(message(backward(args, call.communicator, workspace, Cpu{})).find("backward: argument 'denominators'") == 0);
  args.local.final_state_gradient = {call.pool.view()};
  args.local.final_state_gradient.pool.slots = 0;
  CHECK(message(backward(args, call.communicator, workspace, Cpu{})) ==
        "backward: argument 'local.final_state_gradient' has slots = 0, but must be at least 1.");

  // Of a window, and of hybrid attention, gradients do not pass through states.
  const std::int64_t tokens[] = {6, 0};
  ContextLayout one_rank = layout_of(false, true);
  one_rank.tokens = tokens;
  const auto window_plan = plan_of<Window>(one_rank);
  ContextBackwardArgs<Window> window;
  window.plan = &window_plan;
  call.set(window);
  CHECK(message(backward(window, call.communicator, workspace, Cpu{})) ==
        "backward: the plan's layout has initial states, but gradients through a window's cache are not supported.");
  const auto hybrid_plan = plan_of<Hybrid>(one_rank);
  ContextBackwardArgs<Hybrid> hybrid;
  hybrid.plan = &hybrid_plan;
  call.set(hybrid);
  hybrid.local.key_encoder = {};
  hybrid.local.value_encoder = {};
  StatePool<StateFormatOf<Hybrid>> states;
  JRT_REQUIRE_OK(StatePool<StateFormatOf<Hybrid>>::allocate(1, 2, states));
  hybrid.local.initial_state = {states.view()};
  CHECK(message(backward(hybrid, call.communicator, workspace, Cpu{})) ==
        "backward: the plan's layout has initial states, but gradients do not pass through those of hybrid attention.");
}

TEST_CASE("layouts and groups") {
  const std::vector<std::int64_t> single(40, 1);
  ContextLayout layout;
  layout.ranks = 40;
  layout.tokens = single.data();
  ContextPlan<WideWindow> plan;
  CHECK(ContextPlan<WideWindow>::make(layout, 0, Cpu{}, plan).message() ==
        "context layout: the 64 tokens before a rank's own connect rank 0 with 39 ranks on one side, but with at most 32; "
        "use "
        "fewer ranks.");
  const std::int64_t many[] = {std::int64_t{1} << 31};
  layout.ranks = 1;
  layout.tokens = many;
  CHECK(ContextPlan<WideWindow>::make(layout, 0, Cpu{}, plan).message() ==
        "context layout: rank 0 has 2147483648 tokens of sequence 0, but must have from 0 to 2^31 - 1.");
  const std::int64_t two[] = {INT32_MAX, 1};
  layout.sequences = 2;
  layout.tokens = two;
  CHECK(ContextPlan<WideWindow>::make(layout, 0, Cpu{}, plan).message() ==
        "context layout: rank 0 has 2147483648 tokens and 0 encoder tokens, but at most 2^31 - 1 can be addressed.");
  layout.sequences = -1;
  CHECK(ContextPlan<WideWindow>::make(layout, 0, Cpu{}, plan).message() ==
        "context layout: 'sequences' is -1, but must be at least 0.");
  std::unique_ptr<ThreadGroup> group;
  CHECK(ThreadGroup::make(0, std::chrono::milliseconds(1), group).message() ==
        "ThreadGroup: ranks = 0, but must be at least 1.");
}

}  // namespace
}  // namespace jrt::test
