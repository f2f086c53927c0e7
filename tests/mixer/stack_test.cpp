// SPDX-License-Identifier: Apache-2.0
#include <jrt/mixer/stack.hpp>

#include <doctest/doctest.h>

#include <cstring>
#include <jrt/state_exchange.hpp>
#include <jrt/state_operations.hpp>
#include <string>

#include "support/backend.hpp"
#include "support/stack_problem.hpp"

namespace jrt::test {
namespace {

using Whole = Composed<float>::Whole;
constexpr StateSlots<Whole> no_states{};

TEST_CASE("a stack is the format of its own state") {
  static_assert(Whole::layers == 4);
  static_assert(Whole::layer_offset(0) == 0);
  static_assert(Whole::layer_offset(1) == 192);  // 20 channels of 2 floats, rounded up
  static_assert(Whole::layer_offset(2) == 192 + 3 * StateFormatOf<Composed<float>::Global>::slot_bytes(1));
  static_assert(Whole::slot_bytes() == Whole::layer_offset(4));
  static_assert(Whole::slot_bytes() % 64 == 0);
  StatePool<Whole> pool;
  JRT_REQUIRE_OK(StatePool<Whole>::allocate(3, 1, pool));
  const auto whole = pool.view();
  const auto local = layer_pool<2>(whole);
  CHECK(local.heads == 2);
  CHECK(local.slots == 3);
  const auto* const begin = reinterpret_cast<const std::byte*>(whole.data);
  CHECK(reinterpret_cast<const std::byte*>(local.head(2, 0)) == begin + 2 * Whole::slot_bytes() + Whole::layer_offset(2));
  const auto last = layer_pool<3>(whole);
  CHECK(reinterpret_cast<const std::byte*>(last.head(2, 33)) <= begin + 3 * Whole::slot_bytes());
  CHECK(layer_slots<1>(no_states).empty());
}

TEST_CASE_TEMPLATE("a stack's operations are those of its mixers", E, float, BFloat16) {
  using Types = Composed<E>;
  using Backend = Concurrent;
  const StackProblem<E> problem(2, 30, 11);
  StackStates<Backend, E> states(4, ~std::uint64_t{0});
  auto outputs = run_stack<Backend>(problem.piece(0, 25), StateSlots<typename Types::Whole>{}, states.at({3, 1}));
  for (std::int64_t t = 25; t < 30; ++t) {
    outputs = joined(outputs, step_stack<Backend>(problem.piece(t, 1), states.at({3, 1})));
  }

  // Each mixer by itself, with a pool of its own.
  const auto carried = [&](const auto& convolution, auto numbers) {
    auto result = run_convolution<Backend>(token_slice(convolution, 0, 25));
    numbers = result.states;
    const auto steps = run_convolution_steps<Backend>(token_slice(convolution, 25, 5), numbers, 1, Layout::bthd);
    return std::pair(joined_tokens(result.output, steps), numbers);
  };
  const auto first = carried(problem.first, CarriedInputs<typename Types::Short>{});
  const auto last = carried(problem.last, CarriedInputs<typename Types::Wide>{});
  CHECK(outputs.first == first.first);
  CHECK(outputs.last == last.first);
  auto global = run_prefill<Backend>(problem.piece(0, 25).global, {}, {.layout = Layout::bhtd});
  const auto global_steps = run_decode<Backend>(problem.global, 25, 5, global.states);
  const auto joined_global = joined_tokens(global.output, global_steps);
  CHECK(relative_error(outputs.global.values, joined_global.values) <= 2 * tolerance<E>());
  auto local = run_window<Backend>(problem.local.piece(0, 25));
  const auto local_steps = step_window<Backend>(problem.local, 25, 5, local.caches);
  CHECK(relative_error(outputs.local.values, joined_tokens(local.output, local_steps).values) <= 2 * tolerance<E>());

  // Its parts of the pool hold what theirs do.
  for (const std::int32_t b : {0, 1}) {
    const std::int32_t slot = b == 0 ? 3 : 1;
    const auto part = [&](const auto& all) {
      const auto each = static_cast<std::ptrdiff_t>(all.size() / 2);
      return std::vector(all.begin() + b * each, all.begin() + (b + 1) * each);
    };
    CHECK(states.template layer_state<0>(slot) == part(first.second));
    CHECK(states.template layer_state<3>(slot) == part(last.second));
    const auto sums = used_numbers<typename Types::Global>(states.template layer_state<1>(slot));
    CHECK(relative_error(sums, used_numbers<typename Types::Global>(part(global.states))) <= 2 * tolerance<E>());
    CHECK(used_bytes<typename Types::Local>(states.template layer_state<2>(slot)) ==
          used_bytes<typename Types::Local>(part(local.caches)));
  }
}

TEST_CASE_TEMPLATE("fork, then diverge; reset; a fork back is a rollback", Backend, JRT_TEST_BACKENDS) {
  const StackProblem<float> problem(1, 24, 9);
  const StackProblem<float> other(1, 24, 9, 77);
  StackStates<Backend, float> states(3);
  run_stack<Backend>(problem.piece(0, 20), no_states, states.at({0}));
  const auto before = states.saved(0);
  JRT_REQUIRE_OK(copy_states(states.at({0, 0}), states.at({1, 2}), 2, Backend::execution()));
  CHECK(states.saved(2) == before);
  const auto here = step_stack<Backend>(problem.piece(20, 4), states.at({0}));
  const auto there = step_stack<Backend>(other.piece(20, 4), states.at({1}));
  CHECK(states.saved(2) == before);
  CHECK(states.saved(0) != before);
  CHECK(states.saved(1) != states.saved(0));
  // Back to where they parted: the same steps give the same bits.
  JRT_REQUIRE_OK(copy_states(states.at({2, 2}), states.at({0, 1}), 2, Backend::execution()));
  CHECK(step_stack<Backend>(other.piece(20, 4), states.at({0})) == there);
  CHECK(step_stack<Backend>(problem.piece(20, 4), states.at({1})) == here);
  // An empty slot is the state of a sequence that has seen nothing.
  JRT_REQUIRE_OK(clear_states(states.at({0}), 1, Backend::execution()));
  const auto from_cleared = run_stack<Backend>(other, states.at({0}), states.at({0}));
  const auto from_nothing = run_stack<Backend>(other, no_states, states.at({1}));
  CHECK(from_cleared == from_nothing);
  CHECK(states.saved(0) == states.saved(1));
}

TEST_CASE_TEMPLATE("save and load: the same bits, or a message and nothing written", Backend, JRT_TEST_BACKENDS) {
  const StackProblem<float> problem(2, 24, 9);
  StackStates<Backend, float> states(4);
  run_stack<Backend>(problem.piece(0, 20), no_states, states.at({0, 1}));
  std::vector<std::byte> bytes(static_cast<std::size_t>(saved_states_bytes<Whole>(2, 1)));
  JRT_REQUIRE_OK(save_states(states.at({0, 1}), 2, std::span<std::byte>(bytes), Backend::execution()));
  const auto expected = step_stack<Backend>(problem.piece(20, 4), states.at({0, 1}));
  JRT_REQUIRE_OK(load_states(std::span<const std::byte>(bytes), states.at({3, 2}), 2, Backend::execution()));
  CHECK(step_stack<Backend>(problem.piece(20, 4), states.at({3, 2})) == expected);

  const auto before = states.saved(2);
  const auto refused = [&](const std::vector<std::byte>& wrong, auto& pool, const char* message) {
    const Status status = load_states(std::span<const std::byte>(wrong), pool.at({2, 3}), 2, Backend::execution());
    CHECK(status.code() == StatusCode::corrupt_data);
    INFO(std::string(status.message()));
    CHECK(std::string(status.message()).find(message) != std::string::npos);
  };
  auto wrong = bytes;
  wrong.resize(bytes.size() - 1);
  refused(wrong, states, "the saved size in bytes is");
  wrong.resize(sizeof(SavedStatesHeader) * 3 - 1);
  refused(wrong, states, "the saved header's size in bytes is 287, but must be 288");
  wrong = bytes;
  wrong[offsetof(SavedStatesHeader, version)] = std::byte{9};
  refused(wrong, states, "the saved version is 9, but must be 1");
  wrong = bytes;
  // Header 2 is that of layer 1.
  wrong[2 * sizeof(SavedStatesHeader) + offsetof(SavedStatesHeader, heads)] = std::byte{8};
  refused(wrong, states, "layer 1: the saved number of heads is 8, but must be 3");
  wrong = bytes;
  wrong[3 * sizeof(SavedStatesHeader) + offsetof(SavedStatesHeader, rows)] = std::byte{129};
  refused(wrong, states, "layer 2: the saved number of rows is 129, but must be 8");
  StackStates<Backend, BFloat16> others(4);
  refused(bytes, others, "layer 0: the saved scalar type is 'float32', but must be 'bfloat16'");
  CHECK(states.saved(2) == before);
}

TEST_CASE_TEMPLATE("staged steps and commit: all mixers take the same tokens", Backend, JRT_TEST_BACKENDS) {
  const StackProblem<float> problem(3, 26, 9);
  StackStates<Backend, float> states(6);
  run_stack<Backend>(problem.piece(0, 20), no_states, states.at({0, 1, 2}));
  JRT_REQUIRE_OK(copy_states(states.at({0, 1, 2}), states.at({3, 4, 5}), 3, Backend::execution()));
  const auto before = states.saved(1);

  StackStaging<Whole> staging{nullptr, 3, 6};
  typename Backend::template Array<std::byte> memory(std::vector<std::byte>(staging.bytes()));
  staging.data = memory.data();
  const auto staged = [&](std::int64_t first, std::int64_t count) {
    PlacedStack<Backend, float> placed(problem.piece(20 + first, count));
    auto args = placed.template args<StagedStepArgs>();
    args.state = states.at({0, 1, 2});
    args.staging = staging;
    args.already_staged = first;
    JRT_REQUIRE_OK(staged_step(args, Backend::execution()));
    return placed.outputs();
  };
  const auto four = staged(0, 4);
  const auto outputs = joined(four, staged(4, 2));
  CHECK(states.saved(1) == before);
  CommitArgs<Whole> commit_args;
  typename Backend::template Array<std::int32_t> accepted({6, 0, 3});
  commit_args.staging = staging;
  commit_args.accepted_tokens = accepted.data();
  commit_args.source = states.at({0, 1, 2});
  JRT_REQUIRE_OK(commit(commit_args, Backend::execution()));
  CHECK(states.saved(1) == before);
  // The same in steps that commit at once.
  const auto at_once = step_stack<Backend>(problem.piece(20, 6), states.at({3, 4, 5}));
  CHECK(outputs.first == at_once.first);
  CHECK(outputs.global == at_once.global);
  CHECK(outputs.last == at_once.last);
  CHECK(relative_error(outputs.local.values, at_once.local.values) <= 4e-6);  // its keys come in another order
  CHECK(states.saved(0) == states.saved(3));
  // Two sequences go on from where they were accepted.
  PlacedStack<Backend, float> placed(problem.piece(20, 3));
  auto three = placed.template args<DecodeArgs>();
  run_stack<Backend>(problem.piece(0, 20), no_states, states.at({3, 4, 5}));
  three.source = states.at({skip_slot, skip_slot, 5});
  JRT_REQUIRE_OK(decode_step(three, Backend::execution()));
  CHECK(states.saved(2) == states.saved(5));
}

TEST_CASE_TEMPLATE("layers run in turn, and what comes before one may fail", Backend, JRT_TEST_BACKENDS) {
  const StackProblem<float> problem(1, 4, 0);
  PlacedStack<Backend, float> placed(problem);
  StackStates<Backend, float> states(1);
  auto args = placed.template args<PrefillArgs>();
  args.final_state = states.all();
  typename Backend::template Array<std::byte> memory(
      std::vector<std::byte>(prefill_workspace_bytes(args, Backend::execution()) + 1));
  const Workspace workspace{memory.data(), memory.read().size()};
  std::vector<int> order;
  JRT_REQUIRE_OK(prefill(
      args,
      [&](int layer) {
        order.push_back(layer);
        return Status{};
      },
      workspace, Backend::execution()));
  CHECK(order == std::vector<int>{0, 1, 2, 3});
  const auto after = states.saved(0);

  JRT_REQUIRE_OK(clear_states(states.all(), 1, Backend::execution()));
  const Status failed = prefill(
      args,
      [](int layer) { return layer == 2 ? Status::error(StatusCode::out_of_memory, "no room for queries.") : Status{}; },
      workspace, Backend::execution());
  CHECK(failed.code() == StatusCode::out_of_memory);
  CHECK(failed.message() == "layer 2: no room for queries.");
  CHECK(states.template layer_state<2>(0) == std::vector<float>(states.template layer_state<2>(0).size()));
  JRT_REQUIRE_OK(prefill(args, workspace, Backend::execution()));
  CHECK(states.saved(0) == after);
}

TEST_CASE_TEMPLATE("wrong arguments are named with their layer, before anything runs", Backend, JRT_TEST_BACKENDS) {
  const StackProblem<float> problem(1, 4, 0);
  PlacedStack<Backend, float> placed(problem);
  StackStates<Backend, float> states(1);
  int calls = 0;
  const auto refused = [&](const PrefillArgs<Whole>& args, const Workspace& workspace, const char* message) {
    const Status status = prefill(
        args,
        [&](int /*layer*/) {
          ++calls;
          return Status{};
        },
        workspace, Backend::execution());
    CHECK(status.code() == StatusCode::invalid_argument);
    CHECK(status.message() == message);
  };
  auto args = placed.template args<PrefillArgs>();
  args.final_state = states.all();
  const std::size_t needed = prefill_workspace_bytes(args, Backend::execution());
  if (needed > 0) {
    refused(args, {},
            ("prefill: argument 'workspace' has bytes = 0, but the call needs " + std::to_string(needed) + ".").c_str());
  }
  auto wrong = args;
  std::get<3>(wrong.layers).weight = nullptr;
  refused(wrong, {}, "layer 3: prefill: argument 'weight' is null.");
  wrong = args;
  std::get<3>(wrong.layers).output.tokens = 3;
  refused(wrong, {}, "layer 3: prefill: argument 'output' has tokens = 3, but layer 0's is 4.");
  wrong = args;
  std::get<1>(wrong.layers).value.tokens = 3;
  refused(wrong, {}, "layer 1: prefill: argument 'value' has tokens = 3, but query's is 4.");
  wrong = args;
  std::get<3>(wrong.layers).output = {};
  refused(wrong, {}, "layer 3: prefill: argument 'output' is missing: it has tokens = 0, but layer 0's is 4.");
  wrong = args;
  std::get<0>(wrong.layers).output = {};
  refused(wrong, {},
          "layer 0: prefill: argument 'output' is missing: it has heads = 0, but the number of a convolution's is 1.");
  wrong = args;
  wrong.final_state.pool.slot_stride -= 7;
  wrong.final_state.pool.slots = 2;
  const std::string needed_stride = std::to_string(Whole::head_elements);
  refused(wrong, {},
          ("prefill: argument 'final_state' has slot_stride = " + std::to_string(wrong.final_state.pool.slot_stride) +
           ", but must be at least " + needed_stride + ".")
              .c_str());
  wrong = args;
  wrong.final_state.pool.heads = 2;
  refused(wrong, {}, "prefill: argument 'final_state' has heads = 2, but the number of key/value heads is 1.");
  CHECK(calls == 0);
  CommitArgs<Whole> nothing_staged;
  nothing_staged.source = states.all();
  CHECK(commit(nothing_staged, Backend::execution()).message() ==
        "commit: argument 'staging' is missing: it has tokens = 0, but the least that is of use is 1.");
}

}  // namespace
}  // namespace jrt::test
