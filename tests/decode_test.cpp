// SPDX-License-Identifier: Apache-2.0
#include <jrt/decode.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <jrt/state_exchange.hpp>
#include <jrt/state_operations.hpp>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/linear_problem.hpp"
#include "support/staging_among_others.hpp"

namespace jrt::test {
namespace {

/// Causal problem over `tokens` tokens and random committed states.
template <class Config>
struct Step {
  Problem<Config> problem;
  StateNumbers<Config> states;

  explicit Step(std::int64_t tokens, std::int64_t query_heads = 4, std::int64_t batch = 3)
      : problem({.batch = batch, .tokens = tokens, .heads = 2, .query_heads = query_heads}, 11),
        states(random_states<Config>(batch, 2, 21)) {}
};

TEST_CASE_TEMPLATE("a decode step is within the bound of each element type", E, float, double, Half, BFloat16) {
  using Config = Causal<E, 16, 64>;
  Step<Config> step(9);
  Tensor<double> expected_denominators;
  const auto expected = reference_output(step.problem, step.states, &expected_denominators);
  for (const std::int64_t width : {1, 2, 9}) {
    CAPTURE(width);
    auto states = step.states;
    const auto outputs = run_decode<Concurrent>(step.problem, 0, 9, states, width);
    CHECK(relative_error(outputs.values, expected.values) <= tolerance<E>());
    Denominators<Config> denominators;
    states = step.states;
    CHECK(run_decode<Concurrent>(step.problem, 0, 9, states, width, &denominators) == outputs);
    CHECK(relative_error(denominators.values, expected_denominators.values) <= tolerance<E>());
  }
}

TEST_CASE_TEMPLATE("a step of several tokens is bitwise as many single steps", Config, Causal<float, 16, 64>,
                   Causal<double, 16, 7>, Causal<Half, 8, 20>, PrefixElu<float>) {
  Step<Config> step(12);
  auto single_states = step.states;
  const auto single = run_decode<Simple>(step.problem, 0, 12, single_states);
  for (const std::int64_t width : {2, 3, 5, 12}) {
    CAPTURE(width);
    auto states = step.states;
    CHECK(run_decode<Concurrent>(step.problem, 0, 12, states, width) == single);
    CHECK(used_numbers<Config>(states) == used_numbers<Config>(single_states));
  }
}

TEST_CASE_TEMPLATE("dimensions that are no multiple of a packet", Config, Causal<float, 5, 7>, Causal<float, 16, 112>,
                   Causal<double, 3, 1>) {
  Step<Config> step(6);
  const auto expected = reference_output(step.problem, step.states);
  const auto outputs = run_decode<Simple>(step.problem, 0, 6, step.states, 2);
  CHECK(relative_error(outputs.values, expected.values) <= tolerance<typename Config::Element>());
}

/// A state in 16 bits.
template <class Base, class Scalar>
struct StoredIn : Base {
  using StateScalar = Scalar;
};

TEST_CASE_TEMPLATE("a step on a 16-bit state rounds the state once", Config, StoredIn<Causal<float>, BFloat16>,
                   StoredIn<Causal<BFloat16>, BFloat16>, StoredIn<Causal<float>, Half>) {
  Step<Config> step(1);
  // What a float state would hold after the step, rounded.
  using InFloat = StoredIn<Config, float>;
  Problem<InFloat> same;
  same.query = step.problem.query;
  same.key = step.problem.key;
  same.value = step.problem.value;
  StateNumbers<InFloat> exact;
  for (const auto number : step.states) {
    exact.push_back(convert<float>(number));
  }
  const auto expected = run_decode<Simple>(same, 0, 1, exact);
  const auto outputs = run_decode<Simple>(step.problem, 0, 1, step.states);
  if (same_sums_for_all_state_types) {
    CHECK(outputs == expected);
  } else {
    CHECK(relative_error(outputs.values, expected.values) <= tolerance<typename Config::Element>());
  }
  for (std::size_t i = 0; i < exact.size(); ++i) {
    REQUIRE(step.states[i] == convert<typename Config::StateScalar>(exact[i]));
  }
}

/// Places a step's tensors and keeps them alive.
template <class Backend, class Config>
struct PlacedStep {
  using E = typename Config::Element;
  Placed<Backend, E> query;
  Placed<Backend, E> key;
  Placed<Backend, E> value;
  Placed<Backend, E> output;

  PlacedStep(const Problem<Config>& problem, std::int64_t first, std::int64_t tokens)
      : query(token_slice(problem.query, first, tokens), Layout::spaced),
        key(token_slice(problem.key, first, tokens), Layout::packed),
        value(token_slice(problem.value, first, tokens), Layout::bhtd),
        output(TensorShape{problem.query.shape.batch, tokens, problem.query.shape.heads, Config::value_dim}, Layout::bthd) {
  }

  template <class Args>
  Args args() {
    Args args;
    args.query = query.view();
    args.key = key.view();
    args.value = value.view();
    args.output = output.view();
    return args;
  }
};

TEST_CASE_TEMPLATE("denominators of steps on a 16-bit state", Config, StoredIn<Causal<float>, BFloat16>,
                   StoredIn<Causal<float>, Half>) {
  Step<Config> step(6);
  Tensor<double> expected_denominators;
  const auto expected = reference_output(step.problem, step.states, &expected_denominators);
  auto states = step.states;
  Denominators<Config> denominators;
  const auto outputs = run_decode<Simple>(step.problem, 0, 1, states, 1, &denominators);
  auto states_without = step.states;
  const auto outputs_without = run_decode<Simple>(step.problem, 0, 1, states_without, 1);
  const auto first = [](const auto& tensor) { return token_slice(tensor, 0, 1).values; };
  CHECK(relative_error(outputs.values, first(expected)) <= tolerance<float>());
  CHECK(relative_error(denominators.values, first(expected_denominators)) <= tolerance<float>());
  CHECK(relative_error(outputs_without.values, outputs.values) <= tolerance<float>());
  CHECK(relative_error(used_numbers<Config>(states_without), used_numbers<Config>(states)) <=
        tolerance<typename Config::StateScalar>());
}

TEST_CASE_TEMPLATE("slots: source and destination apart, in any order, padding rows skipped", Backend, JRT_TEST_BACKENDS) {
  using Config = Causal<float>;
  using Format = StateFormatOf<Config>;
  Step<Config> step(1);
  auto expected_states = step.states;
  const auto expected = run_decode<Backend>(step.problem, 0, 1, expected_states);
  constexpr std::int64_t numbers = 2 * Format::head_elements;
  // Sequences 0, 1, 2 read slots 4, 1, - and write 0, -, 2: only the first is complete.
  StateNumbers<Config> pool(6 * numbers, poison<float>());
  std::copy_n(step.states.begin(), numbers, pool.begin() + 4 * numbers);
  std::copy_n(step.states.begin() + numbers, numbers, pool.begin() + 1 * numbers);
  const auto before = pool;
  typename Backend::template Array<float> memory(pool);
  typename Backend::template Array<std::int32_t> source({4, 1, skip_slot});
  typename Backend::template Array<std::int32_t> destination({0, skip_slot, 2});
  PlacedStep<Backend, Config> placed(step.problem, 0, 1);
  auto args = placed.template args<DecodeArgs<Config>>();
  args.source = {view_pool<Format>(memory.data(), 6, 2), source.data()};
  args.destination = {view_pool<Format>(memory.data(), 6, 2), destination.data()};
  JRT_REQUIRE_OK(decode_step(args, Backend::execution()));
  const auto output = placed.output.read();
  CHECK(batch_slice(output, 0) == batch_slice(expected, 0));
  for (const float y : batch_slice(output, 1).values) {
    CHECK(y == 0);
  }
  for (const float y : batch_slice(output, 2).values) {
    CHECK(y == 0);
  }
  const auto after = memory.read();
  const auto used = [](auto begin) { return used_numbers<Config>(StateNumbers<Config>(begin, begin + numbers)); };
  CHECK(used(after.begin()) == used(expected_states.begin()));
  CHECK(std::memcmp(after.data() + numbers, before.data() + numbers, 5 * numbers * sizeof(float)) == 0);
}

TEST_CASE_TEMPLATE("a pool at an odd address with odd strides gives the same bits", Config, Causal<float, 16, 64>,
                   StoredIn<Causal<BFloat16, 16, 64>, BFloat16>) {
  using Format = StateFormatOf<Config>;
  using Scalar = typename Config::StateScalar;
  Step<Config> step(2);
  auto expected_states = step.states;
  const auto expected = run_decode<Simple>(step.problem, 0, 2, expected_states, 2);
  constexpr std::int64_t numbers = 2 * Format::head_elements;
  constexpr std::int64_t stride = numbers + 3;
  std::vector<Scalar> pool(3 * stride + 1, poison<Scalar>());
  for (std::ptrdiff_t b = 0; b < 3; ++b) {
    std::copy_n(step.states.begin() + b * numbers, numbers, pool.begin() + 1 + b * stride);
  }
  Simple::Array<Scalar> memory(pool);
  PlacedStep<Simple, Config> placed(step.problem, 0, 2);
  auto args = placed.template args<DecodeArgs<Config>>();
  args.source = {StatePoolView<Format>{memory.data() + 1, 3, 2, stride}};
  JRT_REQUIRE_OK(decode_step(args, Simple::execution()));
  CHECK(placed.output.read() == expected);
  const auto after = memory.read();
  for (std::ptrdiff_t b = 0; b < 3; ++b) {
    const StateNumbers<Config> one(after.begin() + 1 + b * stride, after.begin() + 1 + b * stride + numbers);
    const StateNumbers<Config> same(expected_states.begin() + b * numbers, expected_states.begin() + (b + 1) * numbers);
    CHECK(used_numbers<Config>(one) == used_numbers<Config>(same));
  }
}

TEST_CASE_TEMPLATE("staged steps: outputs as if committed, commit of k is k steps, state untouched", Backend,
                   JRT_TEST_BACKENDS) {
  using Config = Causal<float, 16, 64>;
  using Format = StateFormatOf<Config>;
  Step<Config> step(5);
  auto stepped_states = step.states;
  const auto expected = run_decode<Backend>(step.problem, 0, 5, stepped_states);

  typename Backend::template Array<float> states(step.states);
  const StatePoolView<Format> pool = view_pool<Format>(states.data(), 3, 2);
  StagingAmongOthers<Backend, Config> staged(3, 6, 2);
  const StagingView<Config> staging = staged.view();
  // A draft of one token, then of three, then one more: each sees the rows staged before.
  std::int64_t first = 0;
  for (const std::int64_t width : {1, 3, 1}) {
    CAPTURE(first);
    PlacedStep<Backend, Config> placed(step.problem, first, width);
    auto args = placed.template args<StagedStepArgs<Config>>();
    args.state = {pool};
    args.staging = staging;
    args.already_staged = first;
    JRT_REQUIRE_OK(staged_step(args, Backend::execution()));
    CHECK(placed.output.read() == token_slice(expected, first, width));
    CHECK(states.read() == step.states);
    first += width;
  }
  CHECK(staged.others_intact());

  typename Backend::template Array<std::int32_t> accepted({5, 0, 2});
  typename Backend::template Array<float> committed(StateNumbers<Config>(step.states.size(), poison<float>()));
  CommitArgs<Config> args;
  args.staging = staging;
  args.accepted_tokens = accepted.data();
  args.source = {pool};
  args.destination = {view_pool<Format>(committed.data(), 3, 2)};
  JRT_REQUIRE_OK(commit(args, Backend::execution()));
  auto two_steps = step.states;
  run_decode<Backend>(step.problem, 0, 2, two_steps);
  const auto result = used_numbers<Config>(committed.read());
  const std::size_t each = result.size() / 3;
  const auto part = [&](const std::vector<double>& all, std::size_t b) {
    return std::vector<double>(all.begin() + static_cast<std::ptrdiff_t>(b * each),
                               all.begin() + static_cast<std::ptrdiff_t>((b + 1) * each));
  };
  CHECK(part(result, 0) == part(used_numbers<Config>(stepped_states), 0));
  CHECK(part(result, 1) == part(used_numbers<Config>(step.states), 1));
  CHECK(part(result, 2) == part(used_numbers<Config>(two_steps), 2));
}

TEST_CASE_TEMPLATE("calls on ranges of heads do what one call on all does", Backend, JRT_TEST_BACKENDS) {
  using Config = Causal<float, 16, 64>;
  using Format = StateFormatOf<Config>;
  Step<Config> step(2);
  auto expected_states = step.states;
  const auto expected = run_decode<Backend>(step.problem, 0, 2, expected_states);

  typename Backend::template Array<float> states(step.states);
  const StateSlots<Format> all{view_pool<Format>(states.data(), 3, 2)};
  PlacedStep<Backend, Config> placed(step.problem, 0, 2);
  for (const std::int64_t head : {0, 1}) {  // each with the two query heads that read it
    auto args = placed.template args<DecodeArgs<Config>>();
    args.query = args.query.slice_heads(2 * head, 2);
    args.key = args.key.slice_heads(head, 1);
    args.value = args.value.slice_heads(head, 1);
    args.output = args.output.slice_heads(2 * head, 2);
    args.source = all.slice_heads(head, 1);
    JRT_REQUIRE_OK(decode_step(args, Backend::execution()));
  }
  CHECK(placed.output.read() == expected);
  CHECK(used_numbers<Config>(states.read()) == used_numbers<Config>(expected_states));

  // Of one head of the last two sequences: what was saved of it is loaded into the other.
  const auto last = [&](std::int64_t head) {
    return StateSlots<Format>{view_pool<Format>(all.pool.head(1, 0), 2, 2)}.slice_heads(head, 1);
  };
  std::vector<std::byte> saved(static_cast<std::size_t>(saved_states_bytes<Format>(2, 1)));
  const auto on = Backend::execution();
  JRT_REQUIRE_OK(save_states(last(0), 2, saved, on));
  const auto numbers_before = states.read();  // a backend with a stream has saved by then
  CHECK(used_numbers<Config>(numbers_before) == used_numbers<Config>(expected_states));
  JRT_REQUIRE_OK(load_states(std::span<const std::byte>(saved), last(1), 2, on));
  JRT_REQUIRE_OK(clear_states(last(0), 2, on));
  const auto head = static_cast<std::ptrdiff_t>(Format::head_elements);
  const auto numbers = states.read();
  for (const std::ptrdiff_t slot : {1, 2}) {
    const auto first = expected_states.begin() + slot * 2 * head;
    const auto now = numbers.begin() + slot * 2 * head;
    CHECK(std::all_of(now, now + head, [](float number) { return number == 0; }));
    CHECK(std::equal(first, first + Format::head_values, now + head));
  }
  CHECK(StateSlots<Format>{}.slice_heads(1, 1).empty());
}

TEST_CASE("commit in place, with padding rows") {
  using Config = Causal<double>;
  using Format = StateFormatOf<Config>;
  Step<Config> step(2);
  Simple::Array<double> states(step.states);
  StagingView<Config> staging{nullptr, 3, 2, 2};
  Simple::Array<double> staged(std::vector<double>(staging.bytes() / sizeof(double)));
  staging.data = staged.data();
  Simple::Array<std::int32_t> slots({2, skip_slot, 0});
  PlacedStep<Simple, Config> placed(step.problem, 0, 2);
  auto args = placed.args<StagedStepArgs<Config>>();
  args.state = {view_pool<Format>(states.data(), 3, 2), slots.data()};
  args.staging = staging;
  JRT_REQUIRE_OK(staged_step(args, Simple::execution()));
  for (const double y : batch_slice(placed.output.read(), 1).values) {
    CHECK(y == 0);
  }
  Simple::Array<std::int32_t> accepted({2, 2, 2});
  CommitArgs<Config> commit_args;
  commit_args.staging = staging;
  commit_args.accepted_tokens = accepted.data();
  commit_args.source = args.state;
  JRT_REQUIRE_OK(commit(commit_args, Simple::execution()));
  Simple::Array<double> expected(step.states);
  PlacedStep<Simple, Config> same(step.problem, 0, 2);
  auto decode_args = same.args<DecodeArgs<Config>>();
  decode_args.source = {view_pool<Format>(expected.data(), 3, 2), slots.data()};
  JRT_REQUIRE_OK(decode_step(decode_args, Simple::execution()));
  CHECK(used_numbers<Config>(states.read()) == used_numbers<Config>(expected.read()));
}

TEST_CASE("a step without tokens or sequences changes nothing") {
  using Config = Causal<float>;
  Step<Config> step(0);
  auto states = step.states;
  run_decode<Simple>(step.problem, 0, 0, states);
  CHECK(used_numbers<Config>(states) == used_numbers<Config>(step.states));
  Simple::Array<float> pool(step.states);
  PlacedStep<Simple, Config> placed(step.problem, 0, 0);
  auto args = placed.args<DecodeArgs<Config>>();
  args.source = {view_pool<StateFormatOf<Config>>(pool.data(), 3, 2)};
  JRT_REQUIRE_OK(decode_step(args, Simple::execution()));
  CHECK(used_numbers<Config>(pool.read()) == used_numbers<Config>(step.states));
}

}  // namespace
}  // namespace jrt::test
