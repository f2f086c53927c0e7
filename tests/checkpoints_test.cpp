// SPDX-License-Identifier: Apache-2.0
#include <jrt/checkpoints.hpp>

#include <doctest/doctest.h>

#include <string>

#include "support/backend.hpp"
#include "support/stack_problem.hpp"

namespace jrt::test {
namespace {

/// A prefill with checkpoints of a stack: outputs, and the states where `states` has them.
template <class Backend, class E>
StackOutputs<E> run_with_checkpoints(const StackProblem<E>& problem, std::int64_t every,
                                     const StateSlots<typename Composed<E>::Whole>& initial,
                                     const StateSlots<typename Composed<E>::Whole>& final,
                                     const StateSlots<typename Composed<E>::Whole>& checkpoints) {
  PlacedStack<Backend, E> placed(problem);
  PlacedSequences<Backend> sequences(problem.global.sequences);
  auto args = placed.template args<PrefillArgs>();
  args.initial_state = initial;
  args.final_state = final;
  args.sequences = sequences.view();
  JRT_REQUIRE_OK(prefill_with_checkpoints(args, {every, checkpoints}, Backend::execution()));
  return placed.outputs();
}

TEST_CASE_TEMPLATE("checkpoints are the states of the beginnings", Backend, JRT_TEST_BACKENDS) {
  // Lengths that end at a checkpoint and that do not; encoders that end before the first checkpoint and behind some.
  struct Case {
    std::int64_t tokens;
    std::int64_t prefix;
    std::int64_t every;
  };
  for (const Case& c : {Case{50, 7, 16}, Case{48, 41, 16}, Case{50, 50, 9}, Case{12, 5, 12}, Case{12, 12, 13},
                        Case{130, 0, 64}, Case{130, 100, 65}, Case{3, 3, 1}}) {
    CAPTURE(c.tokens);
    CAPTURE(c.prefix);
    CAPTURE(c.every);
    using Global = Composed<float>::Global;
    using Local = Composed<float>::Local;
    StackProblem<float> problem(2, c.tokens, c.prefix);
    problem.global.sequences.prefix_lens = {static_cast<std::int32_t>(c.prefix), static_cast<std::int32_t>(c.prefix / 2)};
    const std::int64_t count = c.tokens / c.every;
    StackStates<Backend, float> states(4 + 2 * count);
    std::vector<std::int32_t> slots;  // checkpoint by checkpoint, from the last slot down
    for (std::int64_t i = 0; i < 2 * count; ++i) {
      slots.push_back(static_cast<std::int32_t>(3 + 2 * count - i));
    }
    const auto outputs = run_with_checkpoints<Backend, float>(problem, c.every, {}, states.at({1, 0}), states.at(slots));

    // The whole at once.
    PlacedStack<Backend, float> placed(problem);
    PlacedSequences<Backend> sequences(problem.global.sequences);
    auto args = placed.template args<PrefillArgs>();
    args.sequences = sequences.view();
    args.final_state = states.at({2, 3});
    JRT_REQUIRE_OK(prefill(args, Backend::execution()));
    CHECK(largest_error(outputs, placed.outputs()) <= 4e-6);

    const auto compare = [&](std::int32_t slot, std::int32_t expected, double bound) {
      CHECK(states.template layer_state<0>(slot) == states.template layer_state<0>(expected));
      CHECK(states.template layer_state<3>(slot) == states.template layer_state<3>(expected));
      CHECK(used_bytes<Local>(states.template layer_state<2>(slot)) ==
            used_bytes<Local>(states.template layer_state<2>(expected)));
      CHECK(relative_error(used_numbers<Global>(states.template layer_state<1>(slot)),
                           used_numbers<Global>(states.template layer_state<1>(expected))) <= bound);
    };
    compare(1, 2, 4e-6);
    compare(0, 3, 4e-6);
    if (count > 0 && c.tokens % c.every == 0) {
      compare(1, slots[slots.size() - 2], 0);
    }
    for (std::int64_t k = 0; k < count; ++k) {
      // From a checkpoint, the rest of the prompt gives what it gave.
      const std::int64_t first = (k + 1) * c.every;
      if (first == c.tokens) {
        continue;
      }
      const auto at = static_cast<std::size_t>(2 * k);
      auto rest = problem.piece(first, c.tokens - first);
      rest.global.sequences = {};
      const auto again = run_stack<Backend>(rest, states.at({slots[at], slots[at + 1]}), states.at({2, 3}));
      CHECK(relative_error(again.global.values, token_slice(outputs.global, first, c.tokens - first).values) <= 4e-6);
      CHECK(again.first == token_slice(outputs.first, first, c.tokens - first));
      compare(1, 2, 4e-6);
      compare(0, 3, 4e-6);
    }
  }
}

TEST_CASE_TEMPLATE("checkpoints of one mixer, from a state, in slots of their own order", Backend, JRT_TEST_BACKENDS) {
  using Config = Composed<double>::Global;
  using Format = StateFormatOf<Config>;
  const Problem<Config> problem({.batch = 2, .tokens = 20, .prefix = 20, .heads = 1, .query_heads = 2});
  const auto initial = random_states<Config>(2, 1, 5);
  const auto whole = run_prefill<Backend>(problem, initial);
  Placed<Backend, double> query(problem.query, Layout::bthd);
  Placed<Backend, double> key(problem.key, Layout::bthd);
  Placed<Backend, double> value(problem.value, Layout::bthd);
  Placed<Backend, double> key_encoder(problem.key_encoder, Layout::bthd);
  Placed<Backend, double> value_encoder(problem.value_encoder, Layout::bthd);
  Placed<Backend, double> output(problem.output_shape(), Layout::bthd);
  typename Backend::template Array<double> from(initial);
  typename Backend::template Array<double> to(StateNumbers<Config>(state_numbers<Config>(6, 1)));
  PrefillArgs<Config> args;
  args.query = query.view();
  args.key = key.view();
  args.value = value.view();
  args.key_encoder = key_encoder.view();
  args.value_encoder = value_encoder.view();
  args.output = output.view();
  args.initial_state = {view_pool<Format>(from.data(), 2, 1)};
  // No array: sequence b's checkpoint k in slot 2k + b; no final state.
  const Checkpoints<Config> checkpoints{6, {view_pool<Format>(to.data(), 6, 1)}};
  const std::size_t bytes = checkpoints_workspace_bytes(args, checkpoints, Backend::execution());
  typename Backend::template Array<std::byte> memory((std::vector<std::byte>(bytes)));
  JRT_REQUIRE_OK(prefill_with_checkpoints(args, checkpoints, {memory.data(), bytes}, Backend::execution()));
  CHECK(relative_error(output.read().values, whole.output.values) <= 1e-12);
  const auto beginning = [&](std::int64_t tokens) {
    // All of the encoder, then the tokens, one by one.
    auto states = StateNumbers<Config>(initial);
    Problem<Config> encoder = problem;
    encoder.key = problem.key_encoder;
    encoder.value = problem.value_encoder;
    run_decode<Backend>(encoder, 0, 20, states);
    run_decode<Backend>(problem, 0, tokens, states);
    return states;
  };
  const auto states = to.read();
  for (const std::int64_t k : {0, 1, 2}) {
    const auto each = static_cast<std::ptrdiff_t>(states.size() / 3);
    const StateNumbers<Config> found(states.begin() + k * each, states.begin() + (k + 1) * each);
    CHECK(relative_error(used_numbers<Config>(found), used_numbers<Config>(beginning(6 * (k + 1)))) <= 1e-12);
  }
}

TEST_CASE_TEMPLATE("what checkpoints cannot serve is refused before anything is written", Backend, JRT_TEST_BACKENDS) {
  using Whole = Composed<float>::Whole;
  const StackProblem<float> problem(2, 20, 5);
  PlacedStack<Backend, float> placed(problem);
  StackStates<Backend, float> states(10);
  typename Backend::template Array<std::int32_t> lengths({20, 20});
  auto args = placed.template args<PrefillArgs>();
  args.final_state = states.at({0, 1});
  const Checkpoints<Whole> good{8, states.at({2, 3, 4, 5})};
  const auto refused = [&](const PrefillArgs<Whole>& wrong, const Checkpoints<Whole>& checkpoints, const char* message) {
    const Status status = prefill_with_checkpoints(wrong, checkpoints, Backend::execution());
    CHECK(status.code() == StatusCode::invalid_argument);
    CHECK(status.message() == message);
  };
  refused(args, {0, good.states},
          "layer 0: prefill_with_checkpoints: argument 'checkpoints.every' has value = 0, but must be at least 1.");
  refused(args, {8, {}}, "layer 0: prefill_with_checkpoints: argument 'checkpoints.states' is null.");
  Checkpoints<Whole> few{4, states.all()};
  few.states.pool.slots = 9;
  refused(args, few,
          "layer 0: prefill_with_checkpoints: argument 'checkpoints.states' has slots = 9, but must be at least 10.");
  auto wrong = args;
  wrong.sequences.seq_lens = lengths.data();
  refused(wrong, good,
          "layer 0: prefill_with_checkpoints: argument 'sequences.seq_lens' is given, but must be null: all sequences of "
          "the dense batch have the length of the views.");
  // A slot for each, and all or none of a padding row's.
  if (Backend::host_reads_arrays) {
    refused(
        args, {8, states.at({2, 3, 4, 1})},
        "layer 0: prefill_with_checkpoints: arguments 'checkpoints.states, then final_state[3]' and 'checkpoints.states, "
        "then final_state[5]' share the state of slot 1, but a state that a sequence writes must not be used by another.");
    refused(args, {8, states.at({2, 3, 4, 10})},
            "layer 0: prefill_with_checkpoints: argument 'checkpoints.states.slots[3]' is 10, but must be from -1 to 9 (-1 "
            "skips; the pool's last slot).");
    refused(args, {8, states.at({2, 3, 4, skip_slot})},
            "layer 0: prefill_with_checkpoints: argument 'checkpoints.states.slots[3]' is -1, but "
            "'checkpoints.states.slots[1]' of the same sequence is 3; a row of padding has -1 in all of them.");
  }
  auto implicit = args;
  implicit.final_state = states.all();
  CHECK(prefill_with_checkpoints(implicit, {8, states.all()}, Backend::execution()).code() == StatusCode::invalid_argument);
  Checkpoints<Whole> narrow{8, states.all()};
  narrow.states.pool.slot_stride = Whole::head_elements - 8;
  refused(
      args, narrow,
      ("prefill_with_checkpoints: argument 'checkpoints.states' has slot_stride = " +
       std::to_string(Whole::head_elements - 8) + ", but must be at least " + std::to_string(Whole::head_elements) + ".")
          .c_str());
  wrong = args;
  wrong.final_state = {};
  std::get<1>(wrong.layers).key = {};
  refused(wrong, good, "layer 1: prefill: argument 'key' is missing: it has dim = 0, but the operator's is 16.");
  wrong = args;
  std::get<2>(wrong.layers).key.heads = 1;
  refused(wrong, good, "layer 2: prefill: argument 'value' has heads = 2, but key's is 1.");
  for (const std::int32_t slot : {0, 1, 2, 3, 4, 5}) {
    StackStates<Backend, float> empty(1);
    CHECK(states.saved(slot) == empty.saved(0));
  }
  // Without a whole piece there is nothing to write, and no pool is needed.
  JRT_REQUIRE_OK(prefill_with_checkpoints(args, Checkpoints<Whole>{21, {}}, Backend::execution()));
}

TEST_CASE_TEMPLATE("checkpoints every 0 tokens, and never", Backend, JRT_TEST_BACKENDS) {
  using Config = Composed<float>::Global;
  const Problem<Config> problem({.batch = 1, .tokens = 10, .prefix = 4, .heads = 1, .query_heads = 1});
  Placed<Backend, float> query(problem.query, Layout::bthd);
  Placed<Backend, float> key(problem.key, Layout::bthd);
  Placed<Backend, float> value(problem.value, Layout::bthd);
  Placed<Backend, float> key_encoder(problem.key_encoder, Layout::bthd);
  Placed<Backend, float> value_encoder(problem.value_encoder, Layout::bthd);
  Placed<Backend, float> output(problem.output_shape(), Layout::bthd);
  PrefillArgs<Config> args;
  args.query = query.view();
  args.key = key.view();
  args.value = value.view();
  args.key_encoder = key_encoder.view();
  args.value_encoder = value_encoder.view();
  args.output = output.view();
  for (const std::int64_t every : {std::int64_t{0}, std::int64_t{-3}}) {
    CHECK(checkpoints_workspace_bytes(args, Checkpoints<Config>{every, {}}, Backend::execution()) ==
          prefill_workspace_bytes(args, Backend::execution()));
    CHECK(prefill_with_checkpoints(args, Checkpoints<Config>{every, {}}, Backend::execution()).code() ==
          StatusCode::invalid_argument);
  }
  JRT_REQUIRE_OK(prefill_with_checkpoints(args, Checkpoints<Config>{INT64_MAX, {}}, Backend::execution()));
  CHECK(output.read() == run_prefill<Backend>(problem, {}, {.layout = Layout::bthd}).output);
}

}  // namespace
}  // namespace jrt::test
