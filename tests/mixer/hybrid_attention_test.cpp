// SPDX-License-Identifier: Apache-2.0
#include <jrt/mixer/hybrid_attention.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <jrt/checkpoints.hpp>
#include <jrt/mixer/stack.hpp>
#include <jrt/state_exchange.hpp>
#include <jrt/state_operations.hpp>
#include <string>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/fuzz.hpp"
#include "support/hybrid_problem.hpp"
#include "support/staging_among_others.hpp"

namespace jrt::test {
namespace {

using Small = Mixed<double, 7>;
using SmallFloat = Mixed<float, 7, 16, 64>;
using Published = Mixed<BFloat16, 128, 16, 64>;

static_assert(StateFormatOf<Published>::window_offset_bytes == StateFormatOf<Published::Linear>::slot_bytes(1));
static_assert(StateFormatOf<Published>::slot_bytes(3) ==
              StateFormatOf<Published::Linear>::slot_bytes(3) + StateFormatOf<Published::Window>::slot_bytes(3));

template <class Config>
double error_of(const Tensor<typename Config::Element>& output, const HybridProblem<Config>& problem) {
  return relative_error(output.values, reference_hybrid(problem).values);
}

/// Outputs within the specified bound of the oracle, which works in double on the same rounded inputs.
template <class Backend, class Config>
void check_against_reference(const HybridProblem<Config>& problem, const RunOptions& options = {}) {
  CHECK(error_of(run_hybrid<Backend>(problem, {}, options).output, problem) <= tolerance<typename Config::Element>());
}

TEST_CASE_TEMPLATE("prefill agrees with the formula at every size", Config, Small, MixedCausal<double, 0>,
                   Mixed<float, 63>) {
  for (const std::int64_t tokens : edge_lengths()) {
    for (const std::int64_t prefix : {std::int64_t{0}, tokens / 3, tokens}) {
      if (prefix == 0 || Config::Linear::Mask::reads_encoder) {
        CAPTURE(tokens);
        CAPTURE(prefix);
        check_against_reference<Simple>(HybridProblem<Config>({.batch = 1, .tokens = tokens, .prefix = prefix}));
      }
    }
  }
}

TEST_CASE_TEMPLATE("prefill is within the bound of each element type", E, float, double, Half, BFloat16) {
  const ProblemShape shape{.batch = 1, .tokens = 300, .heads = 1};
  ProblemShape prefixed = shape;
  prefixed.prefix = 70;
  check_against_reference<Simple>(HybridProblem<Mixed<E, 7, 16, 64>>(prefixed));
  check_against_reference<Simple>(HybridProblem<Mixed<E, 128, 16, 64>>(prefixed));
  check_against_reference<Simple>(HybridProblem<Mixed<E, 128, 16, 64>>(shape));
  // The first tokens alone, whose window holds all there is: nothing is subtracted there.
  for (unsigned seed = 1; seed < 20; ++seed) {
    check_against_reference<Simple>(HybridProblem<Mixed<E, 7, 16, 64>>({.batch = 1, .tokens = 3}, seed));
  }
}

TEST_CASE_TEMPLATE("a window of nothing but the query itself, and a mask without encoder region", Config,
                   Mixed<BFloat16, 0, 16, 64>, MixedCausal<BFloat16, 128, 16, 64>, MixedCausal<float, 30>) {
  check_against_reference<Concurrent>(HybridProblem<Config>({.batch = 1, .tokens = 300}));
}

TEST_CASE_TEMPLATE("other dimensions", Config, Mixed<float, 15, 24, 48>, Mixed<BFloat16, 15, 32, 32>, Mixed<float, 3, 5, 7>,
                   Mixed<Half, 64, 16, 112>) {
  check_against_reference<Simple>(HybridProblem<Config>({.tokens = 101, .prefix = 20}));
}

TEST_CASE("a sequence that is split over workers") {
  using Linear = SplitByLength<Prefix<float, 16, 24>, 64>;
  using Split = HybridAttention<Linear, WindowBeside<Linear, 30>>;
  check_against_reference<Concurrent>(HybridProblem<Split>({.batch = 1, .tokens = 500, .prefix = 130}));
  check_against_reference<Concurrent>(
      HybridProblem<MixedCausal<float, 30>>({.batch = 1, .tokens = 1500, .heads = 1, .query_heads = 1}));
}

TEST_CASE_TEMPLATE("a window of at least all tokens is full causal softmax attention", E, double, float, BFloat16) {
  for (const std::int64_t tokens : {1, 60, 129}) {
    const HybridProblem<Mixed<E, 128, 16, 64>> problem({.tokens = tokens});
    const HybridProblem<Mixed<E, 1000, 16, 64>> same({.tokens = tokens});
    const auto output = run_hybrid<Simple>(problem).output;
    CHECK(relative_error(output.values, reference_hybrid(same).values) <= tolerance<E>());
  }
}

TEST_CASE_TEMPLATE("scores far beyond the range of the exponential", E, float, Half, BFloat16) {
  // Standard deviation of scores: scale² · √d / √d; up to 60 and more.
  const HybridProblem<Mixed<E, 7, 16, 64>> problem({.tokens = 90, .prefix = 30}, 1, 4);
  const auto output = run_hybrid<Simple>(problem).output;
  for (const E y : output.values) {
    REQUIRE(std::isfinite(convert<double>(y)));
  }
  CHECK(error_of(output, problem) <= 20 * tolerance<E>());
  const HybridProblem<Mixed<E, 7, 16, 64>> larger({.tokens = 90, .prefix = 30}, 1, 12);
  auto states = empty_mixed<Mixed<E, 7, 16, 64>>(2, 2);
  const auto prefilled = run_hybrid<Simple>(larger).output;
  const auto stepped = step_hybrid<Simple>(larger, 0, 90, states);
  for (const auto* outputs : {&prefilled, &stepped}) {
    for (const E y : outputs->values) {
      REQUIRE(std::isfinite(convert<double>(y)));
    }
  }
}

TEST_CASE_TEMPLATE("the oracle, too, goes on from a state", Config, Small, MixedCausal<double, 0>) {
  const HybridProblem<Config> problem({.tokens = 40, .prefix = Config::Linear::Mask::reads_encoder ? 5 : 0});
  const auto whole = reference_hybrid(problem);
  for (const std::int64_t cut : {5, 7, 8, 9, 30}) {
    CAPTURE(cut);
    const auto begun = run_hybrid<Simple>(problem.piece(0, cut));
    const auto rest = reference_hybrid(problem.piece(cut, 40 - cut), begun.states);
    CHECK(relative_error(rest.values, token_slice(whole, cut, 40 - cut).values) <= tolerance<double>());
  }
}

TEST_CASE_TEMPLATE("every layout gives the same result", E, float, Half) {
  using Config = Mixed<E, 7, 16, 64>;
  const HybridProblem<Config> problem({.tokens = 70, .prefix = 20});
  const auto contiguous = run_hybrid<Simple>(problem);
  for (const Layout layout : all_layouts) {
    CAPTURE(static_cast<int>(layout));
    const auto placed = run_hybrid<Simple>(problem, {}, {.layout = layout});
    CHECK(relative_error(placed.output.values, contiguous.output.values) <= 2 * tolerance<E>());
    check_same_state<Config>(placed.states, contiguous.states);
  }
}

TEST_CASE_TEMPLATE("grouped query heads read their key head", Config, Small, Published) {
  check_against_reference<Simple>(HybridProblem<Config>({.tokens = 150, .prefix = 40, .heads = 2, .query_heads = 6}));
}

TEST_CASE_TEMPLATE("packed sequences are within the bound, and equal separate calls", Backend, JRT_TEST_BACKENDS) {
  const std::vector<std::int64_t> lengths{49, 0, 1, 100, 5};
  const std::vector<std::int64_t> prefixes{20, 0, 1, 0, 5};
  const auto check = [&](auto config) {
    using Config = decltype(config);
    HybridProblem<Config> packed({.batch = 1, .tokens = 155, .prefix = 26});
    packed.sequences.count = 5;
    packed.sequences.cu_seqlens = {0, 49, 49, 50, 150, 155};
    packed.sequences.cu_encoder_seqlens = {0, 20, 20, 21, 21, 26};
    const auto together = run_hybrid<Backend>(packed);
    CHECK(error_of(together.output, packed) <= tolerance<typename Config::Element>());
    std::int64_t first = 0;
    std::int64_t encoder_first = 0;
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      CAPTURE(s);
      HybridProblem<Config> one = packed.piece(first, lengths[s]);
      one.key_encoder = token_slice(packed.key_encoder, encoder_first, prefixes[s]);
      one.value_encoder = token_slice(packed.value_encoder, encoder_first, prefixes[s]);
      const auto alone = run_hybrid<Backend>(one);
      CHECK(relative_error(token_slice(together.output, first, lengths[s]).values, alone.output.values) <=
            2 * tolerance<typename Config::Element>());
      check_same_state<Config>(mixed_of<Config>(together.states, static_cast<std::int64_t>(s), 2), alone.states);
      first += lengths[s];
      encoder_first += prefixes[s];
    }
  };
  check(SmallFloat{});
  check(Mixed<BFloat16, 7, 16, 64>{});
}

TEST_CASE_TEMPLATE("left pads and right padding are seen by nobody", Backend, JRT_TEST_BACKENDS) {
  HybridProblem<Small> problem({.batch = 4, .tokens = 40, .prefix = 12});
  problem.sequences.left_pads = {0, 3, 40, 7};
  problem.sequences.seq_lens = {40, 25, 40, 7};
  problem.sequences.prefix_lens = {12, 12, 0, 7};
  for (std::int64_t b = 0; b < 4; ++b) {
    const auto s = static_cast<std::size_t>(b);
    for (std::int64_t t = 0; t < 40; ++t) {
      if (t < problem.sequences.left_pads[s] || t >= problem.sequences.seq_lens[s]) {
        for (auto* tensor : {&problem.query, &problem.key, &problem.value}) {
          std::fill_n(&tensor->at(b, t, 0, 0), tensor->shape.heads * tensor->shape.dim, poison<double>());
        }
      }
    }
  }
  const auto results = run_hybrid<Backend>(problem);
  CHECK(error_of(results.output, problem) <= tolerance<double>());
  CHECK(results.output.at(1, 2, 0, 0) == 0);
  CHECK(results.output.at(1, 25, 1, 15) == 0);
  CHECK(results.output.at(2, 39, 1, 15) == 0);
  HybridProblem<Small> alone;
  alone.query = token_slice(batch_slice(problem.query, 1), 3, 22);
  alone.key = token_slice(batch_slice(problem.key, 1), 3, 22);
  alone.value = token_slice(batch_slice(problem.value, 1), 3, 22);
  alone.key_encoder = token_slice(batch_slice(problem.key_encoder, 1), 3, 9);
  alone.value_encoder = token_slice(batch_slice(problem.value_encoder, 1), 3, 9);
  check_same_state<Small>(mixed_of<Small>(results.states, 1, 2), run_hybrid<Backend>(alone).states);
  CHECK(contents_of<Small>(mixed_of<Small>(results.states, 2, 2)) == contents_of<Small>(empty_mixed<Small>(1, 2)));
}

template <class Backend, class Config>
void check_pieces(std::int64_t prefix) {
  const HybridProblem<Config> problem({.tokens = 150, .prefix = prefix});
  const auto whole = run_hybrid<Backend>(problem);
  for (const std::vector<std::int64_t>& lengths :
       std::vector<std::vector<std::int64_t>>{{1, 149}, {3, 1, 2, 0, 144}, {64, 5, 65, 16}, {8, 7, 135}, {150, 0}}) {
    if (lengths[0] < prefix) {
      continue;  // the encoder region belongs to the first piece
    }
    CAPTURE(lengths[0]);
    Tensor<typename Config::Element> output = token_slice(whole.output, 0, 0);
    MixedStates states;
    std::int64_t first = 0;
    for (const std::int64_t length : lengths) {
      auto part = run_hybrid<Backend>(problem.piece(first, length), states);
      output = joined_tokens(output, part.output);
      states = part.states;
      first += length;
    }
    CHECK(error_of(output, problem) <= tolerance<typename Config::Element>());
    check_same_state<Config>(states, whole.states);
  }
}

TEST_CASE_TEMPLATE("pieces equal the whole", Backend, JRT_TEST_BACKENDS) {
  for (const std::int64_t prefix : {0, 1, 60}) {
    check_pieces<Backend, Small>(prefix);
    check_pieces<Backend, Mixed<float, 0>>(prefix);
    check_pieces<Backend, Published>(prefix);
    check_pieces<Backend, Mixed<Half, 7, 16, 64>>(prefix);
  }
}

template <class Backend, class Config>
void check_steps(std::int64_t tokens, std::int64_t prefix, const std::vector<std::int64_t>& widths) {
  const HybridProblem<Config> problem({.tokens = tokens, .prefix = prefix, .heads = 2, .query_heads = 4});
  const auto whole = run_hybrid<Backend>(problem);
  for (const std::int64_t width : widths) {
    for (const std::int64_t prompt : {prefix, std::max(prefix, tokens / 3)}) {
      CAPTURE(width);
      CAPTURE(prompt);
      auto begun = run_hybrid<Backend>(problem.piece(0, prompt));
      const auto steps = step_hybrid<Backend>(problem, prompt, tokens - prompt, begun.states, width);
      CHECK(error_of(joined_tokens(begun.output, steps), problem) <= tolerance<typename Config::Element>());
      check_same_state<Config>(begun.states, whole.states);
    }
  }
}

TEST_CASE_TEMPLATE("decode steps of any width equal prefill", Backend, JRT_TEST_BACKENDS) {
  check_steps<Backend, Small>(41, 0, {1, 2, 7, 8, 9, 20});
  check_steps<Backend, Small>(41, 5, {1, 3, 11});
  check_steps<Backend, SmallFloat>(41, 0, {1, 5, 11});
  check_steps<Backend, Published>(141, 10, {1, 47});
}
TEST_CASE("decode steps for windows around an edge") {
  check_steps<Simple, Mixed<double, 0>>(9, 0, {1, 2});
  check_steps<Concurrent, Mixed<Half, 7, 16, 64>>(41, 3, {1, 7});
  check_steps<Concurrent, Mixed<float, 15, 24, 48>>(150, 0, {1, 5});
}

TEST_CASE("a sequence without initial state starts empty, whatever its slot holds") {
  const HybridProblem<Small> problem({.tokens = 12});
  const auto fresh = run_hybrid<Simple>(problem);
  const auto ignoring = run_hybrid<Simple>(problem, poisoned_mixed<Small>(2, 2), {.has_initial_state = {0, 0}});
  CHECK(ignoring.output == fresh.output);
  CHECK(contents_of<Small>(ignoring.states) == contents_of<Small>(fresh.states));
  // One sequence goes on, the other begins.
  const auto mixed = run_hybrid<Simple>(problem, fresh.states, {.has_initial_state = {1, 0}});
  CHECK(batch_slice(mixed.output, 1) == batch_slice(fresh.output, 1));
  CHECK(batch_slice(mixed.output, 0) == batch_slice(run_hybrid<Simple>(problem, fresh.states).output, 0));
}

TEST_CASE_TEMPLATE("no tokens leave the state as it was", Backend, JRT_TEST_BACKENDS) {
  const auto states = run_hybrid<Backend>(HybridProblem<Small>({.tokens = 17})).states;
  const HybridProblem<Small> none({.tokens = 0});
  CHECK(contents_of<Small>(run_hybrid<Backend>(none, states).states) == contents_of<Small>(states));
  CHECK(contents_of<Small>(run_hybrid<Backend>(none).states) == contents_of<Small>(empty_mixed<Small>(2, 2)));
  using Format = StateFormatOf<Small>;
  typename Backend::template Array<std::uint64_t> pool(states);
  PlacedHybrid<Backend, Small> placed(none, Layout::bthd);
  auto args = placed.template args<DecodeArgs<Small>>();
  args.source = {view_pool<Format>(pool.data(), 2, 2)};
  JRT_REQUIRE_OK(decode_step(args, Backend::execution()));
  CHECK(contents_of<Small>(pool.read()) == contents_of<Small>(states));
}

template <class Backend, class Config>
void check_slots() {
  using Format = StateFormatOf<Config>;
  using E = typename Config::Element;
  const auto states = run_hybrid<Backend>(HybridProblem<Config>({.batch = 3, .tokens = 19}, 5)).states;
  for (const std::int64_t tokens : {2, 40}) {
    CAPTURE(tokens);
    const HybridProblem<Config> problem({.batch = 3, .tokens = tokens});
    auto expected_states = states;
    const auto expected = step_hybrid<Backend>(problem, 0, tokens, expected_states, tokens);
    // Sequences 0, 1, 2 read slots 4, 1, - and write 0, -, 2: only the first is complete. Slots lie apart.
    const auto numbers = static_cast<std::int64_t>(mixed_units<Config>(1, 2));
    const std::int64_t stride = numbers + 2;
    MixedStates pool(static_cast<std::size_t>(6 * stride), ~std::uint64_t{0});
    std::copy_n(states.begin(), numbers, pool.begin() + 4 * stride);
    std::copy_n(states.begin() + numbers, numbers, pool.begin() + stride);
    typename Backend::template Array<std::uint64_t> memory(pool);
    typename Backend::template Array<std::int32_t> source({4, 1, skip_slot});
    typename Backend::template Array<std::int32_t> destination({0, skip_slot, 2});
    const StatePoolView<Format> view{memory.data(), 6, 2, stride};
    const auto check = [&](const auto& output, const MixedStates& after) {
      CHECK(relative_error(batch_slice(output, 0).values, batch_slice(expected, 0).values) <= 2 * tolerance<E>());
      for (const std::int64_t b : {1, 2}) {
        for (const E y : batch_slice(output, b).values) {
          CHECK(convert<double>(y) == 0);
        }
      }
      check_same_state<Config>({after.begin(), after.begin() + numbers}, mixed_of<Config>(expected_states, 0, 2));
      CHECK(std::equal(after.begin() + numbers, after.end(), pool.begin() + numbers));
    };
    {
      PlacedHybrid<Backend, Config> placed(problem, Layout::spaced);
      auto args = placed.template args<DecodeArgs<Config>>();
      args.source = {view, source.data()};
      args.destination = {view, destination.data()};
      JRT_REQUIRE_OK(decode_step(args, Backend::execution()));
      check(placed.output.read(), memory.read());
    }
    {
      PlacedHybrid<Backend, Config> placed(problem, Layout::bthd);
      auto args = placed.template args<PrefillArgs<Config>>();
      args.initial_state = {view, source.data()};
      args.final_state = {view, destination.data()};
      JRT_REQUIRE_OK(prefill(args, Backend::execution()));
      check(placed.output.read(), memory.read());
    }
  }
}

TEST_CASE_TEMPLATE("slots: source and destination apart, in any order, padding rows skipped", Backend, JRT_TEST_BACKENDS) {
  check_slots<Backend, SmallFloat>();
  check_slots<Backend, Mixed<BFloat16, 7, 16, 64>>();
}

TEST_CASE_TEMPLATE("in place and to another slot give the same bits", Backend, JRT_TEST_BACKENDS) {
  using Format = StateFormatOf<Small>;
  for (const std::int64_t tokens : {1, 3, 19}) {
    CAPTURE(tokens);
    const auto states = run_hybrid<Backend>(HybridProblem<Small>({.tokens = 17}, 5)).states;
    const HybridProblem<Small> problem({.tokens = tokens});
    auto in_place = states;
    const auto expected = step_hybrid<Backend>(problem, 0, tokens, in_place, tokens, Layout::bthd);
    typename Backend::template Array<std::uint64_t> source(states);
    typename Backend::template Array<std::uint64_t> destination(poisoned_mixed<Small>(2, 2));
    PlacedHybrid<Backend, Small> placed(problem, Layout::bthd);
    auto args = placed.template args<DecodeArgs<Small>>();
    args.source = {view_pool<Format>(source.data(), 2, 2)};
    args.destination = {view_pool<Format>(destination.data(), 2, 2)};
    JRT_REQUIRE_OK(decode_step(args, Backend::execution()));
    CHECK(placed.output.read() == expected);
    CHECK(contents_of<Small>(destination.read()) == contents_of<Small>(in_place));
    CHECK(source.read() == states);
    // The same for prefill.
    const auto apart = run_hybrid<Backend>(problem, states);
    PlacedHybrid<Backend, Small> again(problem, Layout::bthd);
    auto prefill_args = again.template args<PrefillArgs<Small>>();
    prefill_args.initial_state = args.source;
    prefill_args.final_state = args.source;
    JRT_REQUIRE_OK(prefill(prefill_args, Backend::execution()));
    CHECK(again.output.read() == apart.output);
    CHECK(contents_of<Small>(source.read()) == contents_of<Small>(apart.states));
  }
}

template <class Backend, class Config>
void check_staged(std::int64_t before) {
  using Format = StateFormatOf<Config>;
  using E = typename Config::Element;
  CAPTURE(before);
  constexpr std::int64_t drafted = 11;
  constexpr std::int64_t batch = drafted + 1;  // sequence b accepts b tokens
  const auto states = run_hybrid<Backend>(HybridProblem<Config>({.batch = batch, .tokens = before}, 5)).states;
  const HybridProblem<Config> problem({.batch = batch, .tokens = drafted});
  auto stepped = states;
  const auto expected = step_hybrid<Backend>(problem, 0, drafted, stepped);

  typename Backend::template Array<std::uint64_t> memory(states);
  const StatePoolView<Format> pool = view_pool<Format>(memory.data(), batch, 2);
  StagingAmongOthers<Backend, Config> staged(batch, drafted + 1, 2);
  const StagingView<Config> staging = staged.view();
  std::int64_t first = 0;
  for (const std::int64_t width : {1, 3, 1, 0, 6}) {
    CAPTURE(first);
    PlacedHybrid<Backend, Config> placed(problem.piece(first, width), Layout::spaced);
    auto args = placed.template args<StagedStepArgs<Config>>();
    args.state = {pool};
    args.staging = staging;
    args.already_staged = first;
    JRT_REQUIRE_OK(staged_step(args, Backend::execution()));
    CHECK(relative_error(placed.output.read().values, token_slice(expected, first, width).values) <= tolerance<E>());
    CHECK(placed.output.surroundings_intact());
    first += width;
  }
  CHECK(memory.read() == states);
  CHECK(staged.others_intact());

  std::vector<std::int32_t> counts;
  for (std::int32_t b = 0; b < batch; ++b) {
    counts.push_back(b);
  }
  typename Backend::template Array<std::int32_t> accepted(counts);
  typename Backend::template Array<std::uint64_t> committed(poisoned_mixed<Config>(batch, 2));
  CommitArgs<Config> args;
  args.staging = staging;
  args.accepted_tokens = accepted.data();
  args.source = {pool};
  args.destination = {view_pool<Format>(committed.data(), batch, 2)};
  JRT_REQUIRE_OK(commit(args, Backend::execution()));
  args.destination = {};
  JRT_REQUIRE_OK(commit(args, Backend::execution()));
  const auto apart = committed.read();
  const auto in_place = memory.read();
  for (std::int64_t b = 0; b < batch; ++b) {
    CAPTURE(b);
    auto wanted = states;
    step_hybrid<Backend>(problem, 0, b, wanted);
    const auto contents = contents_of<Config>(mixed_of<Config>(wanted, b, 2));
    CHECK(contents_of<Config>(mixed_of<Config>(apart, b, 2)) == contents);
    CHECK(contents_of<Config>(mixed_of<Config>(in_place, b, 2)) == contents);
  }
}

TEST_CASE_TEMPLATE("staged steps: outputs as if committed, commit of k is k steps to the bit, state untouched", Backend,
                   JRT_TEST_BACKENDS) {
  for (const std::int64_t before : {0, 2, 7, 8, 20}) {
    check_staged<Backend, Small>(before);
    check_staged<Backend, Mixed<float, 0>>(before);
  }
  check_staged<Backend, Mixed<BFloat16, 7, 16, 64>>(20);
}

TEST_CASE_TEMPLATE("staged steps and commit skip padding rows", Backend, JRT_TEST_BACKENDS) {
  using Format = StateFormatOf<Small>;
  const auto states = run_hybrid<Backend>(HybridProblem<Small>({.batch = 3, .tokens = 16}, 5)).states;
  const HybridProblem<Small> problem({.batch = 3, .tokens = 2});
  typename Backend::template Array<std::uint64_t> memory(states);
  typename Backend::template Array<std::uint64_t> expected(states);
  typename Backend::template Array<std::int32_t> slots({2, skip_slot, 0});
  StagingView<Small> staging{nullptr, 3, 2, 2};
  typename Backend::template Array<double> staged(std::vector<double>(staging.bytes() / sizeof(double), poison<double>()));
  staging.data = staged.data();
  PlacedHybrid<Backend, Small> placed(problem, Layout::spaced);
  auto args = placed.template args<StagedStepArgs<Small>>();
  args.state = {view_pool<Format>(memory.data(), 3, 2), slots.data()};
  args.staging = staging;
  JRT_REQUIRE_OK(staged_step(args, Backend::execution()));
  for (const double y : batch_slice(placed.output.read(), 1).values) {
    CHECK(y == 0);
  }
  typename Backend::template Array<std::int32_t> accepted({2, 2, 1});
  CommitArgs<Small> commit_args;
  commit_args.staging = staging;
  commit_args.accepted_tokens = accepted.data();
  commit_args.source = args.state;
  JRT_REQUIRE_OK(commit(commit_args, Backend::execution()));

  // Both take the first token, the first sequence the second, too.
  for (const std::int64_t token : {0, 1}) {
    typename Backend::template Array<std::int32_t> taking({2, skip_slot, token == 0 ? 0 : skip_slot});
    PlacedHybrid<Backend, Small> step(problem.piece(token, 1), Layout::spaced);
    auto step_args = step.template args<DecodeArgs<Small>>();
    step_args.source = {view_pool<Format>(expected.data(), 3, 2), taking.data()};
    JRT_REQUIRE_OK(decode_step(step_args, Backend::execution()));
  }
  CHECK(contents_of<Small>(memory.read()) == contents_of<Small>(expected.read()));
}

TEST_CASE_TEMPLATE("a fork goes its own way, a cleared slot begins anew", Backend, JRT_TEST_BACKENDS) {
  using Format = StateFormatOf<Small>;
  const HybridProblem<Small> prompt({.batch = 1, .tokens = 17}, 5);
  const HybridProblem<Small> rest({.batch = 1, .tokens = 9}, 20);
  const auto begun = run_hybrid<Backend>(prompt);
  MixedStates pool = poisoned_mixed<Small>(2, 2);
  std::copy(begun.states.begin(), begun.states.end(), pool.begin());
  typename Backend::template Array<std::uint64_t> memory(pool);
  typename Backend::template Array<std::int32_t> from({0});
  typename Backend::template Array<std::int32_t> to({1});
  const StatePoolView<Format> view = view_pool<Format>(memory.data(), 2, 2);
  const StateSlots<Format> destination{view, to.data()};
  JRT_REQUIRE_OK(copy_states(StateSlots<Format>{view, from.data()}, destination, 1, Backend::execution()));
  auto second = mixed_of<Small>(memory.read(), 1, 2);
  CHECK(contents_of<Small>(second) == contents_of<Small>(begun.states));
  HybridProblem<Small> whole;
  whole.query = joined_tokens(prompt.query, rest.query);
  whole.key = joined_tokens(prompt.key, rest.key);
  whole.value = joined_tokens(prompt.value, rest.value);
  whole.key_encoder = prompt.key_encoder;
  whole.value_encoder = prompt.value_encoder;
  CHECK(error_of(joined_tokens(begun.output, step_hybrid<Backend>(rest, 0, 9, second, 2)), whole) <= tolerance<double>());

  JRT_REQUIRE_OK(clear_states(destination, 1, Backend::execution()));
  auto cleared = mixed_of<Small>(memory.read(), 1, 2);
  CHECK(contents_of<Small>(cleared) == contents_of<Small>(empty_mixed<Small>(1, 2)));
  CHECK(error_of(step_hybrid<Backend>(rest, 0, 9, cleared), rest) <= tolerance<double>());
}

TEST_CASE_TEMPLATE("saved states come back to the bit, those of another mixer are refused", Backend, JRT_TEST_BACKENDS) {
  using Format = StateFormatOf<Published>;
  const auto states = run_hybrid<Backend>(HybridProblem<Published>({.batch = 3, .tokens = 140})).states;
  typename Backend::template Array<std::uint64_t> memory(states);
  typename Backend::template Array<std::uint64_t> back(poisoned_mixed<Published>(3, 2));
  typename Backend::template Array<std::int32_t> from({2, skip_slot, 0});
  std::vector<std::byte> buffer(static_cast<std::size_t>(saved_states_bytes<Format>(3, 2)));
  JRT_REQUIRE_OK(
      save_states<Format>({view_pool<Format>(memory.data(), 3, 2), from.data()}, 3, buffer, Backend::execution()));
  static_cast<void>(memory.read());  // waits for the backend
  JRT_REQUIRE_OK(load_states<Format>(buffer, {view_pool<Format>(back.data(), 3, 2)}, 3, Backend::execution()));
  const auto loaded = back.read();
  const auto contents = [](const MixedStates& all, std::int64_t slot) {
    return contents_of<Published>(mixed_of<Published>(all, slot, 2));
  };
  CHECK(contents(loaded, 0) == contents(states, 2));
  CHECK(contents(loaded, 1) == contents_of<Published>(empty_mixed<Published>(1, 2)));
  CHECK(contents(loaded, 2) == contents(states, 0));

  const auto refuses = [&](auto config, const char* part) {
    using Other = StateFormatOf<decltype(config)>;
    typename Backend::template Array<std::uint64_t> other(empty_mixed<decltype(config)>(3, 2));
    const Status status = load_states<Other>(buffer, {view_pool<Other>(other.data(), 3, 2)}, 3, Backend::execution());
    INFO(std::string(status.message()));
    CHECK(status.code() == StatusCode::corrupt_data);
    CHECK(status.message().find(part) != std::string_view::npos);
  };
  refuses(Mixed<BFloat16, 127, 16, 64>{}, "number of rows is 282, but must be 281");
  refuses(Mixed<float, 128, 16, 64>{}, "scalar type is 'f32,bf16', but must be 'f32,f32'");
  refuses(Mixed<Half, 128, 16, 64>{}, "but must be 'f32,f16'");
}

TEST_CASE_TEMPLATE("as a layer of a stack, beside others", Backend, JRT_TEST_BACKENDS) {
  using Whole = Stack<Layer<Causal<float, 16, 64>, 2>, Layer<SmallFloat, 2>, Layer<Mixed<float, 3, 8, 8>, 2>>;
  const HybridProblem<SmallFloat> problem({.tokens = 30});
  const HybridProblem<Mixed<float, 3, 8, 8>> other({.tokens = 30}, 9);
  const HybridProblem<SmallFloat> linear({.tokens = 30}, 17);
  typename Backend::template Array<std::uint64_t> pool(
      std::vector<std::uint64_t>(static_cast<std::size_t>(2 * Whole::head_elements), ~std::uint64_t{0}));
  const StateSlots<Whole> states{view_pool<Whole>(pool.data(), 2, 1)};
  const auto outputs_of = [&](std::int64_t first, std::int64_t count, auto args) {
    PlacedHybrid<Backend, SmallFloat> a(linear.piece(first, count), Layout::bthd);
    PlacedHybrid<Backend, SmallFloat> b(problem.piece(first, count), Layout::spaced);
    PlacedHybrid<Backend, Mixed<float, 3, 8, 8>> c(other.piece(first, count), Layout::packed);
    auto& layers = args.layers;
    const auto fill = [](auto& to, auto& placed) {
      to.query = placed.query.view();
      to.key = placed.key.view();
      to.value = placed.value.view();
      to.output = placed.output.view();
    };
    fill(std::get<0>(layers), a);
    fill(std::get<1>(layers), b);
    fill(std::get<2>(layers), c);
    if constexpr (requires { args.final_state; }) {
      args.final_state = states;
      JRT_REQUIRE_OK(prefill(args, Backend::execution()));
    } else if constexpr (requires { args.staging; }) {
      args.state = states;
      args.staging.sequences = 2;
      args.staging.tokens = count;
      typename Backend::template Array<std::byte> staged(std::vector<std::byte>(args.staging.bytes()));
      args.staging.data = staged.data();
      JRT_REQUIRE_OK(staged_step(args, Backend::execution()));
      typename Backend::template Array<std::int32_t> accepted(std::vector<std::int32_t>(2, static_cast<int>(count)));
      CommitArgs<Whole> commit_args;
      commit_args.staging = args.staging;
      commit_args.accepted_tokens = accepted.data();
      commit_args.source = states;
      JRT_REQUIRE_OK(commit(commit_args, Backend::execution()));
      static_cast<void>(accepted.read());  // waits for the backend
    } else {
      args.source = states;
      JRT_REQUIRE_OK(decode_step(args, Backend::execution()));
    }
    return std::pair(b.output.read(), c.output.read());
  };
  const auto prompt = outputs_of(0, 13, PrefillArgs<Whole>{});
  const auto step = outputs_of(13, 1, DecodeArgs<Whole>{});
  const auto staged = outputs_of(14, 5, StagedStepArgs<Whole>{});
  const auto rest = outputs_of(19, 11, DecodeArgs<Whole>{});
  const auto joined = [&](auto which) {
    return joined_tokens(joined_tokens(which(prompt), which(step)), joined_tokens(which(staged), which(rest)));
  };
  CHECK(error_of(joined([](const auto& pair) { return pair.first; }), problem) <= tolerance<float>());
  CHECK(error_of(joined([](const auto& pair) { return pair.second; }), other) <= tolerance<float>());
}

TEST_CASE("checkpoints on the way: each is where a prefill may go on") {
  using Format = StateFormatOf<SmallFloat>;
  const HybridProblem<SmallFloat> problem({.tokens = 50, .prefix = 9});
  PlacedHybrid<Simple, SmallFloat> placed(problem, Layout::bthd);
  Simple::Array<std::uint64_t> memory(poisoned_mixed<SmallFloat>(4, 2));
  auto args = placed.args<PrefillArgs<SmallFloat>>();
  const Checkpoints<SmallFloat> checkpoints{20, {view_pool<Format>(memory.data(), 4, 2)}};
  JRT_REQUIRE_OK(prefill_with_checkpoints(args, checkpoints, Simple::execution()));
  CHECK(error_of(placed.output.read(), problem) <= tolerance<float>());
  const auto all = memory.read();
  const MixedStates second(all.begin() + static_cast<std::ptrdiff_t>(mixed_units<SmallFloat>(2, 2)), all.end());
  check_same_state<SmallFloat>(second, run_hybrid<Simple>(problem.piece(0, 40)).states);
  // The encoder region must lie within the first piece.
  const Checkpoints<SmallFloat> narrow{5, checkpoints.states};
  const Status status = prefill_with_checkpoints(args, narrow, Simple::execution());
  CHECK(status.code() == StatusCode::invalid_argument);
}

TEST_CASE_TEMPLATE("a workspace of the size asked for is enough, and one byte less is refused", Config, SmallFloat,
                   Mixed<BFloat16, 7, 16, 64>) {
  const HybridProblem<Config> problem({.tokens = 70, .prefix = 30});
  PlacedHybrid<Concurrent, Config> placed(problem, Layout::bthd);
  auto args = placed.template args<PrefillArgs<Config>>();
  const auto on = Concurrent::execution();
  const std::size_t bytes = prefill_workspace_bytes(args, on);
  const auto expected = run_hybrid<Concurrent>(problem).output;
  for (const std::size_t shift : {0, 1, 63}) {
    CAPTURE(shift);
    Concurrent::Array<unsigned char> workspace(std::vector<unsigned char>(bytes + shift + 64, 0xff));
    JRT_REQUIRE_OK(prefill(args, {workspace.data() + shift, bytes}, on));
    CHECK(placed.output.read() == expected);
    const auto memory = workspace.read();
    for (std::size_t i = 0; i < shift; ++i) {
      CHECK(memory[i] == 0xff);
    }
    for (std::size_t i = bytes + shift; i < memory.size(); ++i) {
      CHECK(memory[i] == 0xff);
    }
    CHECK_FALSE(prefill(args, {workspace.data() + shift, bytes - 1}, on).ok());
  }
}

/// Packed or padded sequences, or a dense batch that prefills and steps go through in random pieces.
template <class Backend, class Config>
double random_case(Random& random) {
  using E = typename Config::Element;
  const std::int64_t heads = random.between(1, 3);
  ProblemShape shape{.batch = random.between(1, 3), .heads = heads, .query_heads = heads * random.between(1, 3)};
  const auto seed = static_cast<unsigned>(random.between(1, 1 << 30));
  const auto as_int = [](std::int64_t number) { return static_cast<std::int32_t>(number); };
  const RunOptions options{.layout = all_layouts[random.between(0, 3)]};
  SequenceLists lists;
  const auto prefix_of = [&](std::int64_t tokens) { return random.chance(0.5) ? random.between(0, tokens) : 0; };
  if (random.chance(0.3)) {
    lists.count = random.between(1, 5);
    lists.cu_seqlens = {0};
    lists.cu_encoder_seqlens = {0};
    for (std::int64_t b = 0; b < lists.count; ++b) {
      const std::int64_t tokens = random_length(random, 80);
      lists.cu_seqlens.push_back(lists.cu_seqlens.back() + as_int(tokens));
      lists.cu_encoder_seqlens.push_back(lists.cu_encoder_seqlens.back() + as_int(prefix_of(tokens)));
      lists.left_pads.push_back(random.chance(0.3) ? as_int(random.between(0, tokens)) : 0);
    }
    shape.batch = 1;
    shape.tokens = lists.cu_seqlens.back();
    shape.prefix = lists.cu_encoder_seqlens.back();
  } else {
    shape.tokens = random_length(random, 160);
    if (random.chance(0.5)) {
      for (std::int64_t b = 0; b < shape.batch; ++b) {
        lists.seq_lens.push_back(as_int(random.between(0, shape.tokens)));
        lists.left_pads.push_back(as_int(random.between(0, lists.seq_lens.back())));
        lists.prefix_lens.push_back(as_int(prefix_of(lists.seq_lens.back())));
        shape.prefix = std::max<std::int64_t>(shape.prefix, lists.prefix_lens.back());
      }
    }
  }
  HybridProblem<Config> problem(shape, seed, 1 + 0.1 * static_cast<double>(random.between(-3, 3)));
  problem.sequences = lists;
  Tensor<E> output;
  if (!lists.left_pads.empty()) {
    output = run_hybrid<Backend>(problem, {}, options).output;
  } else {
    output = Tensor<E>{problem.output_shape(), {}};
    output.shape.tokens = 0;
    MixedStates states = empty_mixed<Config>(shape.batch, heads);
    for (std::int64_t first = 0; first < shape.tokens;) {
      const std::int64_t count = std::min(shape.tokens - first, random.between(1, random.chance(0.5) ? 12 : 160));
      if (random.chance(0.5)) {
        auto part = run_hybrid<Backend>(problem.piece(first, count), states, options);
        output = joined_tokens(output, part.output);
        states = part.states;
      } else {
        output = joined_tokens(output,
                               step_hybrid<Backend>(problem, first, count, states, random.between(1, 9), options.layout));
      }
      first += count;
    }
  }
  return relative_error(output.values, reference_hybrid(problem).values);
}

template <class Backend, class Config>
void check_random_cases(unsigned seed, int cases) {
  Random random(seed);
  for (int i = 0; i < cases; ++i) {
    CAPTURE(i);
    CHECK(random_case<Backend, Config>(random) <= tolerance<typename Config::Element>());
  }
}

TEST_CASE("random calls") {
  check_random_cases<Simple, Small>(1, 40);
  check_random_cases<Concurrent, Mixed<float, 15, 24, 48>>(2, 40);
  check_random_cases<Concurrent, Mixed<BFloat16, 7, 16, 64>>(3, 40);
  check_random_cases<Simple, Mixed<Half, 7, 16, 64>>(4, 20);
}

}  // namespace
}  // namespace jrt::test
