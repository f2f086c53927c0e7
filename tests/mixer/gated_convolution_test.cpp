// SPDX-License-Identifier: Apache-2.0
#include <jrt/mixer/gated_convolution.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <jrt/state_exchange.hpp>
#include <jrt/state_operations.hpp>

#include "support/backend.hpp"
#include "support/convolution_problem.hpp"
#include "support/fuzz.hpp"
#include "support/staging_among_others.hpp"

namespace jrt::test {
namespace {

template <class Base>
struct WithoutActivation : Base {
  using Activation = NoActivation;
};

/// One that no backend knows.
struct Softsign {
  template <class T>
  JRT_DETAIL_HD static T apply(T sum) {
    return sum / (T(1) + (sum < 0 ? -sum : sum));
  }
};
template <class Base>
struct WithSoftsign : Base {
  using Activation = Softsign;
};

template <class E, class WeightT>
struct WithWeights : GatedConvolution<E, 3> {
  using Weight = WeightT;
};

template <class Config>
void check_results(const ConvolutionResults<Config>& results, const ExpectedConvolution& expected) {
  CHECK(relative_error(results.output.values, expected.output) <= tolerance<typename Config::Element>());
  CHECK(relative_error(results.states, expected.states) == 0);  // carried inputs are copied
}

TEST_CASE_TEMPLATE("every element type, width, number of channels and length agrees with the formula", Config,
                   GatedConvolution<float, 2>, GatedConvolution<float, 3>, GatedConvolution<float, 8>,
                   GatedConvolution<double, 3>, GatedConvolution<double, 4>, GatedConvolution<Half, 3>,
                   GatedConvolution<Half, 8>, GatedConvolution<BFloat16, 2>, GatedConvolution<BFloat16, 3>,
                   GatedConvolution<BFloat16, 4>, WithoutActivation<GatedConvolution<float, 3>>,
                   WithoutActivation<GatedConvolution<BFloat16, 4>>, WithSoftsign<GatedConvolution<double, 3>>,
                   WithSoftsign<GatedConvolution<float, 3>>) {
  unsigned seed = 1;
  for (const std::int64_t channels : {1, 7, 8, 64, 97}) {
    for (const std::int64_t tokens : edge_lengths()) {
      CAPTURE(channels);
      CAPTURE(tokens);
      ++seed;
      const ConvolutionProblem<Config> problem(
          {.tokens = tokens, .channels = channels, .has_gate = seed % 3 != 0, .has_bias = seed % 2 == 0}, seed);
      const auto initial = seed % 4 < 2 ? random_carried<Config>(2, channels, seed) : CarriedInputs<Config>{};
      check_results(run_convolution<Simple>(problem, initial, {.layout = all_layouts[seed % 4], .halves = seed % 5 < 3}),
                    expected_convolution(problem, initial));
    }
  }
}

TEST_CASE_TEMPLATE("weights of another type", Config, WithWeights<BFloat16, float>, WithWeights<float, BFloat16>,
                   WithWeights<float, double>, WithWeights<Half, double>) {
  const ConvolutionProblem<Config> problem({.tokens = 33, .channels = 40});
  check_results(run_convolution<Simple>(problem), expected_convolution(problem));
}

TEST_CASE_TEMPLATE("many channels and tokens: blocks and segments meet without a seam", Config, GatedConvolution<float, 4>,
                   GatedConvolution<BFloat16, 3>, GatedConvolution<double, 8>) {
  const ConvolutionProblem<Config> problem({.tokens = 700, .channels = 1100});
  const auto initial = random_carried<Config>(2, 1100, 3);
  const auto results = run_convolution<Concurrent>(problem, initial, {.halves = true});
  check_results(results, expected_convolution(problem, initial));
  // In place, and placed otherwise: the same bits.
  for (const Layout layout : all_layouts) {
    const auto same = run_convolution<Concurrent>(problem, initial, {.layout = layout, .in_place = true});
    CHECK(same.output == results.output);
    CHECK(same.states == results.states);
  }
  CHECK(run_convolution<Simple>(problem, initial).output == results.output);
}

TEST_CASE_TEMPLATE("values far from 0 saturate", Config, GatedConvolution<float, 3>, GatedConvolution<double, 3>,
                   GatedConvolution<BFloat16, 3>) {
  ConvolutionProblem<Config> problem({.tokens = 40, .channels = 20, .has_gate = false});
  for (auto& number : problem.input.values) {
    number = convert<typename Config::Element>(convert<double>(number) * 300);
  }
  check_results(run_convolution<Simple>(problem), expected_convolution(problem));
}

TEST_CASE_TEMPLATE("packed sequences: each as if it were alone", Backend, JRT_TEST_BACKENDS) {
  using Config = GatedConvolution<float, 3>;
  constexpr std::int64_t channels = 97;
  const std::vector<std::int32_t> offsets{0, 0, 1, 150, 150, 152, 409, 411};
  ConvolutionProblem<Config> packed({.batch = 1, .tokens = 411, .channels = channels});
  packed.sequences.count = 7;
  packed.sequences.cu_seqlens = offsets;
  packed.sequences.left_pads = {0, 0, 70, 0, 1, 3, 2};
  const auto initial = random_carried<Config>(7, channels, 5);
  const auto together = run_convolution<Backend>(packed, initial, {.layout = Layout::spaced});
  check_results(together, expected_convolution(packed, initial));
  constexpr std::ptrdiff_t carried = channels * 2;
  for (std::ptrdiff_t b = 0; b < 7; ++b) {
    CAPTURE(b);
    const auto at = static_cast<std::size_t>(b);
    auto alone = token_slice(packed, offsets[at], offsets[at + 1] - offsets[at]);
    alone.sequences = {};
    alone.sequences.left_pads = {packed.sequences.left_pads[at]};
    const auto results = run_convolution<Backend>(
        alone, CarriedInputs<Config>(initial.begin() + b * carried, initial.begin() + (b + 1) * carried));
    CHECK(results.output == token_slice(together.output, offsets[at], offsets[at + 1] - offsets[at]));
    CHECK(results.states ==
          CarriedInputs<Config>(together.states.begin() + b * carried, together.states.begin() + (b + 1) * carried));
  }
}

TEST_CASE_TEMPLATE("padded positions do not count, on either side", Backend, JRT_TEST_BACKENDS) {
  using Config = GatedConvolution<BFloat16, 4>;
  ConvolutionProblem<Config> problem({.batch = 5, .tokens = 140, .channels = 24});
  problem.sequences.left_pads = {0, 3, 70, 139, 20};
  problem.sequences.seq_lens = {140, 100, 71, 140, 20};
  const auto initial = random_carried<Config>(5, 24, 9);
  auto expected = expected_convolution(problem, initial);
  for (const bool in_place : {false, true}) {
    auto results = run_convolution<Backend>(problem, initial, {.in_place = in_place});
    check_results(results, expected);
    for (std::size_t i = 0; i < expected.output.size(); ++i) {
      if (expected.output[i] == 0) {
        REQUIRE(convert<float>(results.output.values[i]) == 0);
      }
    }
  }
}

TEST_CASE_TEMPLATE("decode steps, pieces and the whole are the same bits", Config, GatedConvolution<float, 3>,
                   GatedConvolution<double, 2>, GatedConvolution<Half, 8>, GatedConvolution<BFloat16, 3>) {
  for (const std::int64_t channels : {97, 64}) {
    const ConvolutionProblem<Config> problem({.batch = 3, .tokens = 13, .channels = channels});
    const auto initial = random_carried<Config>(3, channels, 4);
    const auto whole = run_convolution<Simple>(problem, initial);
    check_results(whole, expected_convolution(problem, initial));
    for (const std::int64_t width : {1, 2, 5, 13}) {
      CAPTURE(width);
      auto states = initial;
      CHECK(run_convolution_steps<Concurrent>(problem, states, width, all_layouts[width % 4]) == whole.output);
      CHECK(states == whole.states);
    }
    for (const std::int64_t cut : {0, 1, 6, 13}) {
      CAPTURE(cut);
      const auto first = run_convolution<Concurrent>(token_slice(problem, 0, cut), initial);
      const auto second = run_convolution<Simple>(token_slice(problem, cut, 13 - cut), first.states, {.in_place = true});
      CHECK(joined_tokens(first.output, second.output) == whole.output);
      CHECK(second.states == whole.states);
    }
  }
}

TEST_CASE_TEMPLATE("sequences without an initial state ignore what their slot holds", Backend, JRT_TEST_BACKENDS) {
  using Config = GatedConvolution<float, 3>;
  for (const std::int64_t tokens : {0, 1, 20}) {
    CAPTURE(tokens);
    const ConvolutionProblem<Config> problem({.batch = 3, .tokens = tokens, .channels = 10});
    auto initial = random_carried<Config>(3, 10, 4);
    auto cleared = initial;
    std::fill_n(initial.begin() + 20, 20, poison<float>());
    std::fill_n(cleared.begin() + 20, 20, 0.0F);
    const auto results = run_convolution<Backend>(problem, initial, {.in_place = true, .has_initial_state = {1, 0, 1}});
    const auto expected = run_convolution<Backend>(problem, cleared);
    CHECK(results.output == expected.output);
    CHECK(results.states == expected.states);
  }
}

TEST_CASE_TEMPLATE("no tokens: states are copied, or cleared", Backend, JRT_TEST_BACKENDS) {
  using Config = GatedConvolution<float, 4>;
  const ConvolutionProblem<Config> problem({.batch = 2, .tokens = 0, .channels = 9});
  const auto initial = random_carried<Config>(2, 9, 8);
  CHECK(run_convolution<Backend>(problem, initial).states == initial);
  CHECK(run_convolution<Backend>(problem).states == CarriedInputs<Config>(2 * 9 * 3, 0.0F));
  auto states = initial;
  run_convolution_steps<Backend>(problem, states);
  CHECK(states == initial);
}

TEST_CASE_TEMPLATE("slots: apart, in any order, padding rows skipped, gaps between slots", Backend, JRT_TEST_BACKENDS) {
  using Config = GatedConvolution<float, 3>;
  using Format = StateFormatOf<Config>;
  constexpr std::int64_t channels = 12;
  constexpr std::ptrdiff_t numbers = channels * 2;
  const ConvolutionProblem<Config> problem({.batch = 4, .tokens = 70, .channels = channels});
  const auto initial = random_carried<Config>(4, channels, 6);
  const auto expected = run_convolution<Backend>(problem, initial);
  for (const std::ptrdiff_t stride : {numbers, numbers + 4, numbers + 3}) {
    CAPTURE(stride);
    // Sequences 0 … 3 read slots 4, 1, -, 3 and write 0, -, 2, 3.
    CarriedInputs<Config> pool(static_cast<std::size_t>(6 * stride), poison<float>());
    std::copy_n(initial.begin(), numbers, pool.begin() + 4 * stride);
    std::copy_n(initial.begin() + numbers, numbers, pool.begin() + 1 * stride);
    std::copy_n(initial.begin() + 3 * numbers, numbers, pool.begin() + 3 * stride);
    auto wanted = pool;
    std::copy_n(expected.states.begin(), numbers, wanted.begin());
    std::copy_n(expected.states.begin() + 3 * numbers, numbers, wanted.begin() + 3 * stride);
    typename Backend::template Array<std::int32_t> source({4, 1, skip_slot, 3});
    typename Backend::template Array<std::int32_t> destination({0, skip_slot, 2, 3});
    const auto check = [&](const auto& memory, const Tensor<float>& output) {
      CHECK(batch_slice(output, 0) == batch_slice(expected.output, 0));
      CHECK(batch_slice(output, 3) == batch_slice(expected.output, 3));
      for (const std::int64_t skipped : {1, 2}) {
        for (const float y : batch_slice(output, skipped).values) {
          REQUIRE(y == 0);
        }
      }
      CHECK(std::memcmp(memory.read().data(), wanted.data(), wanted.size() * sizeof(float)) == 0);
    };
    {
      typename Backend::template Array<float> memory(pool);
      const StatePoolView<Format> view{memory.data(), 6, channels, stride};
      PlacedConvolution<Backend, Config> placed(problem, Layout::bthd);
      auto args = placed.template args<PrefillArgs<Config>>();
      args.initial_state = {view, source.data()};
      args.final_state = {view, destination.data()};
      JRT_REQUIRE_OK(prefill(args, Backend::execution()));
      check(memory, placed.output());
    }
    {
      typename Backend::template Array<float> memory(pool);
      const StatePoolView<Format> view{memory.data(), 6, channels, stride};
      PlacedConvolution<Backend, Config> placed(problem, Layout::spaced);
      auto args = placed.template args<DecodeArgs<Config>>();
      args.source = {view, source.data()};
      args.destination = {view, destination.data()};
      JRT_REQUIRE_OK(decode_step(args, Backend::execution()));
      check(memory, placed.output());
    }
  }
}

/// Stages drafts of 1, 3 and 1 tokens on committed inputs, then commits every number of them.
template <class Backend, class Config>
void check_staging(std::int64_t channels) {
  using E = typename Config::Element;
  using Format = StateFormatOf<Config>;
  constexpr std::int64_t tokens = 5;
  constexpr std::int64_t capacity = 6;
  const ConvolutionProblem<Config> problem({.batch = 3, .tokens = tokens, .channels = channels});
  const auto initial = random_carried<Config>(3, channels, 7);
  auto stepped = initial;
  const auto expected = run_convolution_steps<Backend>(problem, stepped);

  typename Backend::template Array<E> states(initial);
  typename Backend::template Array<std::int32_t> slots({0, 1, skip_slot});
  const StateSlots<Format> committed{view_pool<Format>(states.data(), 3, channels), slots.data()};
  StagingAmongOthers<Backend, Config> staged(3, capacity, channels);
  const StagingView<Config> staging = staged.view();
  std::int64_t first = 0;
  for (const std::int64_t width : {1, 3, 1}) {
    CAPTURE(first);
    PlacedConvolution<Backend, Config> placed(token_slice(problem, first, width), Layout::packed);
    auto args = placed.template args<StagedStepArgs<Config>>();
    args.state = committed;
    args.staging = staging;
    args.already_staged = first;
    JRT_REQUIRE_OK(staged_step(args, Backend::execution()));
    const auto output = placed.output();
    for (const std::int64_t b : {0, 1}) {
      CHECK(batch_slice(output, b) == batch_slice(token_slice(expected, first, width), b));
    }
    for (const E y : batch_slice(output, 2).values) {
      REQUIRE(convert<float>(y) == 0);
    }
    first += width;
  }
  CHECK(states.read() == initial);
  std::vector<E> wanted(staged.rows().size(), poison<E>());
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t c = 0; c < channels; ++c) {
        wanted[static_cast<std::size_t>((b * capacity + t) * channels + c)] = problem.input.at(b, t, 0, c);
      }
    }
  }
  CHECK(std::memcmp(staged.rows().data(), wanted.data(), wanted.size() * sizeof(E)) == 0);
  CHECK(staged.others_intact());

  for (std::int32_t accepted = 0; accepted <= tokens; ++accepted) {
    CAPTURE(accepted);
    auto after = initial;
    run_convolution_steps<Backend>(token_slice(problem, 0, accepted), after);
    auto other = initial;
    run_convolution_steps<Backend>(token_slice(problem, 0, tokens - accepted), other);
    const auto numbers = static_cast<std::ptrdiff_t>(channels * Format::head_elements);
    auto both = initial;  // sequence 0 takes the first tokens, sequence 1 the others' number, 2 none
    std::copy_n(after.begin(), numbers, both.begin());
    std::copy_n(other.begin() + numbers, numbers, both.begin() + numbers);
    typename Backend::template Array<E> pool(initial);
    typename Backend::template Array<std::int32_t> counts(
        {accepted, static_cast<std::int32_t>(tokens - accepted), 99});  // of a skipped sequence nothing counts
    CommitArgs<Config> args;
    args.staging = staging;
    args.accepted_tokens = counts.data();
    args.source = {view_pool<Format>(pool.data(), 3, channels), slots.data()};
    JRT_REQUIRE_OK(commit(args, Backend::execution()));
    CHECK(pool.read() == both);
  }
}

TEST_CASE_TEMPLATE("staged steps: outputs as if committed, commit of k is k steps", Backend, JRT_TEST_BACKENDS) {
  check_staging<Backend, GatedConvolution<float, 3>>(12);
  check_staging<Backend, GatedConvolution<float, 8>>(97);
  check_staging<Backend, GatedConvolution<BFloat16, 4>>(64);
  check_staging<Backend, GatedConvolution<Half, 2>>(7);
}

TEST_CASE_TEMPLATE("states are saved, loaded and copied", Backend, JRT_TEST_BACKENDS) {
  using Config = GatedConvolution<BFloat16, 3>;
  using Format = StateFormatOf<Config>;
  const auto numbers = random_carried<Config>(2, 10, 3);
  typename Backend::template Array<BFloat16> from(numbers);
  typename Backend::template Array<BFloat16> to(CarriedInputs<Config>(numbers.size()));
  typename Backend::template Array<BFloat16> copy(CarriedInputs<Config>(numbers.size()));
  const auto slots = [](auto& array) { return StateSlots<Format>{view_pool<Format>(array.data(), 2, 10)}; };
  std::vector<std::byte> bytes(static_cast<std::size_t>(saved_states_bytes<Format>(2, 10)));
  const auto on = Backend::execution();
  JRT_REQUIRE_OK(save_states(slots(from), 2, bytes, on));
  static_cast<void>(from.read());  // waits
  JRT_REQUIRE_OK(load_states(bytes, slots(to), 2, on));
  CHECK(to.read() == numbers);
  JRT_REQUIRE_OK(copy_states(slots(from), slots(copy), 2, on));
  CHECK(copy.read() == numbers);
  // Carried inputs of another width are not these.
  using Other = StateFormatOf<GatedConvolution<BFloat16, 2>>;
  const StateSlots<Other> other{view_pool<Other>(to.data(), 2, 10)};
  CHECK(load_states(bytes, other, 2, on).code() == StatusCode::corrupt_data);
}

/// Random calls, each followed by a step from its final state.
template <class Config>
void fuzz_convolution(unsigned seed, int cases) {
  Random random(seed);
  const auto as_int = [](std::int64_t number) { return static_cast<std::int32_t>(number); };
  for (int i = 0; i < cases; ++i) {
    CAPTURE(i);
    SequenceLists lists;
    ConvolutionShape shape{
        .channels = random.between(1, 70), .has_gate = random.chance(0.7), .has_bias = random.chance(0.5)};
    if (random.chance(0.4)) {
      lists.count = random.between(1, 6);
      lists.cu_seqlens = {as_int(random.between(0, 2))};
      for (std::int64_t b = 0; b < lists.count; ++b) {
        const std::int64_t tokens = random_length(random, 150);
        lists.cu_seqlens.push_back(lists.cu_seqlens.back() + as_int(tokens));
        lists.left_pads.push_back(random.chance(0.3) ? as_int(random.between(0, tokens)) : 0);
      }
      lists.cu_seqlens[0] = 0;
      shape.batch = 1;
      shape.tokens = lists.cu_seqlens.back();
    } else {
      shape.batch = random.between(1, 4);
      shape.tokens = random_length(random, 300);
      const bool lengths = random.chance(0.4);
      const bool pads = random.chance(0.4);
      for (std::int64_t b = 0; b < shape.batch; ++b) {
        const std::int64_t tokens = lengths ? random.between(0, shape.tokens) : shape.tokens;
        if (lengths) {
          lists.seq_lens.push_back(as_int(tokens));
        }
        if (pads) {
          lists.left_pads.push_back(as_int(random.between(0, tokens)));
        }
      }
    }
    const auto number = static_cast<unsigned>(random.between(1, 1 << 30));
    ConvolutionProblem<Config> problem(shape, number);
    problem.sequences = lists;
    const std::int64_t slots = problem.sequence_count();
    const bool has_initial = random.chance(0.6);
    const auto initial = has_initial ? random_carried<Config>(slots, shape.channels, number) : CarriedInputs<Config>{};
    auto results = run_convolution<Concurrent>(problem, initial,
                                               {.layout = all_layouts[random.between(0, 3)],
                                                .halves = random.chance(0.5),
                                                .in_place = has_initial && random.chance(0.5)});
    check_results(results, expected_convolution(problem, initial));
    ConvolutionProblem<Config> more({.batch = slots, .tokens = random.between(1, 9), .channels = shape.channels},
                                    number + 9);
    const auto expected = expected_convolution(more, results.states);
    const auto outputs = run_convolution_steps<Concurrent>(more, results.states, random.between(1, 4));
    check_results<Config>({outputs, results.states}, expected);
  }
}

TEST_CASE("random calls") {
  fuzz_convolution<GatedConvolution<float, 3>>(1, 20);
  fuzz_convolution<GatedConvolution<double, 8>>(2, 10);
  fuzz_convolution<GatedConvolution<BFloat16, 3>>(3, 20);
  fuzz_convolution<GatedConvolution<Half, 4>>(4, 10);
}

}  // namespace
}  // namespace jrt::test
