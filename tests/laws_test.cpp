// SPDX-License-Identifier: Apache-2.0
// Laws that tie the operations together, whatever the numbers.
#include <doctest/doctest.h>

#include <algorithm>
#include <jrt/state_operations.hpp>
#include <numeric>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/linear_problem.hpp"

namespace jrt::test {
namespace {

constexpr double exact = 1e-12;

/// Tokens [first, first + count) of a problem as a causal one: the encoder region is in the state already.
template <class To, class From>
Problem<To> piece(const Problem<From>& whole, std::int64_t first, std::int64_t count) {
  Problem<To> part;
  part.query = token_slice(whole.query, first, count);
  part.key = token_slice(whole.key, first, count);
  part.value = token_slice(whole.value, first, count);
  part.key_encoder = token_slice(whole.key_encoder, 0, 0);
  part.value_encoder = token_slice(whole.value_encoder, 0, 0);
  part.map = whole.map;
  return part;
}

TEST_CASE("prefill of a and b equals prefill of b from the state of a, for every split") {
  using Config = Prefix<double>;
  constexpr std::int64_t tokens = 101;
  constexpr std::int64_t prefix = 13;
  const Problem<Config> whole({.tokens = tokens, .prefix = prefix});
  const auto expected = run_prefill<Simple>(whole);
  for (std::int64_t split = 0; split <= tokens; ++split) {
    CAPTURE(split);
    if (split < prefix) {
      continue;  // the encoder region must lie in the first piece; the next test reads it beforehand
    }
    Problem<Config> first = piece<Config>(whole, 0, split);
    first.key_encoder = whole.key_encoder;
    first.value_encoder = whole.value_encoder;
    const auto a = run_prefill<Simple>(first);
    const auto b = run_prefill<Simple>(piece<Config>(whole, split, tokens - split), a.states);
    CHECK(relative_error(joined_tokens(a.output, b.output).values, expected.output.values) <= exact);
    CHECK(relative_error(used_numbers<Config>(b.states), used_numbers<Config>(expected.states)) <= exact);
  }
}

template <class Backend, class Config>
StateNumbers<Config> run_accumulate(const Tensor<typename Config::Element>& key_values,
                                    const Tensor<typename Config::Element>& value_values,
                                    const StateNumbers<Config>& initial, const SequenceLists& lists = {}) {
  using E = typename Config::Element;
  using Format = StateFormatOf<Config>;
  const std::int64_t heads = key_values.shape.heads;
  const std::int64_t slots = lists.count > 0 ? lists.count : key_values.shape.batch;
  Placed<Backend, E> key(key_values, Layout::spaced);
  Placed<Backend, E> value(value_values, Layout::bhtd);
  PlacedSequences<Backend> sequences(lists);
  typename Backend::template Array<typename Config::StateScalar> from(initial);
  typename Backend::template Array<typename Config::StateScalar> to(
      StateNumbers<Config>(state_numbers<Config>(slots, heads)));
  AccumulateArgs<Config> args;
  args.key = key.view();
  args.value = value.view();
  args.sequences = sequences.view();
  if (!initial.empty()) {
    args.initial_state = {view_pool<Format>(from.data(), slots, heads)};
  }
  args.final_state = {view_pool<Format>(to.data(), slots, heads)};
  JRT_REQUIRE_OK(accumulate(args, Backend::execution()));
  return to.read();
}

TEST_CASE_TEMPLATE("the encoder may be accumulated in pieces before a causal prefill", Backend, JRT_TEST_BACKENDS) {
  using Config = Prefix<double>;
  const Problem<Config> whole({.tokens = 80, .prefix = 60});
  const auto expected = run_prefill<Backend>(whole);
  StateNumbers<Config> state;
  for (const auto& [first, count] : {std::pair{0, 7}, {7, 0}, {7, 50}, {57, 3}}) {
    state = run_accumulate<Backend, Config>(token_slice(whole.key_encoder, first, count),
                                            token_slice(whole.value_encoder, first, count), state);
  }
  using Decoder = Causal<double>;
  const auto result = run_prefill<Backend>(piece<Decoder>(whole, 0, 80), state);
  CHECK(relative_error(result.output.values, expected.output.values) <= exact);
  CHECK(relative_error(used_numbers<Config>(result.states), used_numbers<Config>(expected.states)) <= exact);
}

TEST_CASE("packed accumulation with pads equals separate calls") {
  using Config = Prefix<double>;
  const Problem<Config> problem({.batch = 1, .tokens = 90});
  SequenceLists lists{.count = 3, .cu_seqlens = {0, 50, 50, 90}, .left_pads = {4, 0, 40}};
  const auto together = run_accumulate<Concurrent, Config>(problem.key, problem.value, {}, lists);
  const auto first = run_accumulate<Simple, Config>(token_slice(problem.key, 4, 46), token_slice(problem.value, 4, 46), {});
  const auto numbers = static_cast<std::ptrdiff_t>(state_numbers<Config>(1, 2));
  CHECK(StateNumbers<Config>(together.begin(), together.begin() + numbers) == first);
  for (std::ptrdiff_t i = numbers; i < 3 * numbers; ++i) {
    CHECK(together[static_cast<std::size_t>(i)] == 0);
  }
}

TEST_CASE_TEMPLATE("prefill equals as many decode steps", Config, Prefix<double>, PrefixElu<double>,
                   WithoutNormaliser<Prefix<double>>) {
  const Problem<Config> whole({.batch = 2, .tokens = 60, .prefix = 20, .heads = 2, .query_heads = 4});
  const auto expected = run_prefill<Simple>(whole);
  auto states = run_accumulate<Simple, Config>(whole.key_encoder, whole.value_encoder, {});
  const auto outputs = run_decode<Concurrent>(whole, 0, 60, states);
  CHECK(relative_error(outputs.values, expected.output.values) <= exact);
  CHECK(relative_error(used_numbers<Config>(states), used_numbers<Config>(expected.states)) <= exact);
}

TEST_CASE("states of parts merge to the state of the whole") {
  using Config = Prefix<double>;
  using Format = StateFormatOf<Config>;
  const Problem<Config> whole({.tokens = 75});
  const auto expected = run_accumulate<Simple, Config>(whole.key, whole.value, {});
  Simple::Array<double> sum(
      run_accumulate<Simple, Config>(token_slice(whole.key, 0, 20), token_slice(whole.value, 0, 20), {}));
  Simple::Array<double> rest(
      run_accumulate<Simple, Config>(token_slice(whole.key, 20, 55), token_slice(whole.value, 20, 55), {}));
  JRT_REQUIRE_OK(merge_states<Format>({view_pool<Format>(rest.data(), 2, 2)}, {view_pool<Format>(sum.data(), 2, 2)}, 2,
                                      Simple::execution()));
  CHECK(relative_error(used_numbers<Config>(sum.read()), used_numbers<Config>(expected)) <= exact);
}

TEST_CASE_TEMPLATE("a left-padded sequence equals the unpadded one, bitwise", Config, Prefix<float>, Full<float>,
                   Causal<Half>) {
  constexpr std::int64_t tokens = 70;
  const std::int64_t prefix = Config::Mask::reads_encoder ? 40 : 0;
  for (const std::int32_t pad : {1, 5, 48, 70}) {
    CAPTURE(pad);
    Problem<Config> padded({.batch = 1, .tokens = tokens, .prefix = prefix});
    padded.sequences.left_pads = {pad};
    Problem<Config> plain;
    plain.query = token_slice(padded.query, pad, tokens - pad);
    plain.key = token_slice(padded.key, pad, tokens - pad);
    plain.value = token_slice(padded.value, pad, tokens - pad);
    const std::int64_t encoder_pad = std::min<std::int64_t>(pad, prefix);
    plain.key_encoder = token_slice(padded.key_encoder, encoder_pad, prefix - encoder_pad);
    plain.value_encoder = token_slice(padded.value_encoder, encoder_pad, prefix - encoder_pad);
    const auto a = run_prefill<Simple>(padded);
    const auto b = run_prefill<Simple>(plain);
    CHECK(token_slice(a.output, pad, tokens - pad) == b.output);
    CHECK(a.states == b.states);
    for (const auto y : token_slice(a.output, 0, pad).values) {
      CHECK(convert<float>(y) == 0);
    }
  }
}

TEST_CASE("under the length split a sequence gives bitwise the same result in any batch, on any threads") {
  using Config = SplitByLength<Prefix<float>, 96>;
  const Problem<Config> batch({.batch = 5, .tokens = 400, .prefix = 230});
  const auto together = run_prefill<Concurrent>(batch);
  CHECK(run_prefill<Simple>(batch).output == together.output);
  for (std::int64_t b = 0; b < 5; ++b) {
    CAPTURE(b);
    Problem<Config> one;
    one.query = batch_slice(batch.query, b);
    one.key = batch_slice(batch.key, b);
    one.value = batch_slice(batch.value, b);
    one.key_encoder = batch_slice(batch.key_encoder, b);
    one.value_encoder = batch_slice(batch.value_encoder, b);
    CHECK(run_prefill<Concurrent>(one).output == batch_slice(together.output, b));
  }
}

TEST_CASE_TEMPLATE("a split sequence agrees with the formula", Config, SplitByLength<Prefix<double>, 50>,
                   SplitByLength<Full<double>, 50>, SplitByLength<Causal<double>, 50>) {
  for (const std::int64_t tokens : {1, 49, 50, 51, 97, 200, 333}) {
    CAPTURE(tokens);
    const std::int64_t prefix = Config::Mask::reads_encoder ? tokens * 2 / 3 : 0;
    const Problem<Config> problem({.batch = 2, .tokens = tokens, .prefix = prefix});
    const auto initial = random_states<Config>(2, 2, 4);
    const auto results = run_prefill<Concurrent>(problem, initial);
    CHECK(relative_error(results.output.values, reference_output(problem, initial).values) <= exact);
    using Unsplit = std::conditional_t<Config::Mask::reads_encoder, Prefix<double>,
                                       std::conditional_t<Config::Mask::reads_future, Full<double>, Causal<double>>>;
    Problem<Unsplit> same;
    same.query = problem.query;
    same.key = problem.key;
    same.value = problem.value;
    same.key_encoder = problem.key_encoder;
    same.value_encoder = problem.value_encoder;
    const auto unsplit = run_prefill<Simple>(same, initial);
    CHECK(relative_error(used_numbers<Config>(results.states), used_numbers<Config>(unsplit.states)) <= exact);
  }
}

TEST_CASE("a split call with packed lengths, pads, grouped heads and sequences without initial state") {
  using Config = SplitByLength<Prefix<double>, 50>;
  Problem<Config> problem({.batch = 1, .tokens = 400, .prefix = 230, .heads = 2, .query_heads = 4});
  problem.sequences.count = 4;
  problem.sequences.cu_seqlens = {0, 150, 150, 350, 400};
  problem.sequences.cu_encoder_seqlens = {0, 120, 120, 220, 230};
  problem.sequences.left_pads = {60, 0, 3, 50};
  auto initial = random_states<Config>(4, 2, 4);
  const std::size_t each = initial.size() / 4;
  std::fill_n(initial.begin() + static_cast<std::ptrdiff_t>(2 * each), each, 0.0);
  const auto expected = reference_output(problem, initial);
  std::fill_n(initial.begin() + static_cast<std::ptrdiff_t>(2 * each), each, poison<double>());
  const auto results =
      run_prefill<Concurrent>(problem, initial, {.layout = Layout::spaced, .has_initial_state = {1, 1, 0, 1}});
  CHECK(relative_error(results.output.values, expected.values) <= exact);
}

TEST_CASE("a long accumulation is split and agrees with the unsplit one") {
  using Split = SplitByLength<Prefix<double>, 100>;
  const Problem<Split> problem({.batch = 2, .tokens = 500});
  const auto initial = random_states<Split>(2, 2, 4);
  const auto split = run_accumulate<Concurrent, Split>(problem.key, problem.value, initial);
  const auto whole = run_accumulate<Simple, Prefix<double>>(problem.key, problem.value, initial);
  CHECK(relative_error(used_numbers<Split>(split), used_numbers<Split>(whole)) <= exact);
}

TEST_CASE("one long sequence is split over all threads, repeatably") {
  using Config = Prefix<float>;
  REQUIRE(Config::Split::segments(2000, 1, Concurrent::workers()) > 1);
  const Problem<Config> problem({.batch = 1, .tokens = 2000, .prefix = 1000, .heads = 1, .query_heads = 1});
  const auto first = run_prefill<Concurrent>(problem);
  CHECK(relative_error(first.output.values, reference_output(problem).values) <= tolerance<float>());
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto again = run_prefill<Concurrent>(problem);
    CHECK(again.output == first.output);
    CHECK(again.states == first.states);
  }
}

TEST_CASE_TEMPLATE("slots may be anywhere in the pool, and padding rows touch nothing", Config, Prefix<float>,
                   SplitByLength<Prefix<float>, 48>, SplitByLength<Full<float>, 48>) {
  using Format = StateFormatOf<Config>;
  constexpr std::int64_t heads = 2;
  constexpr std::int64_t slots = 7;
  constexpr std::int64_t stride = heads * Format::head_elements + 33;  // an engine keeps other things in between
  constexpr bool encoder = Config::Mask::reads_encoder;
  Problem<Config> problem({.batch = 4, .tokens = 130, .prefix = encoder ? 100 : 0});
  const auto plain_initial = random_states<Config>(4, heads, 3);
  const auto expected = run_prefill<Simple>(problem, plain_initial);

  std::vector<float> pool(slots * stride, poison<float>());
  const std::vector<std::int32_t> source{5, 2, skip_slot, 0};
  const std::vector<std::int32_t> destination{5, 6, 3, skip_slot};
  for (std::size_t b = 0; b < 4; ++b) {
    if (source[b] != skip_slot) {
      std::copy_n(plain_initial.begin() + static_cast<std::ptrdiff_t>(b) * heads * Format::head_elements,
                  heads * Format::head_elements, pool.begin() + source[b] * stride);
    }
  }
  const std::vector<float> before = pool;
  Simple::Array<float> placed_pool(pool);
  Simple::Array<std::int32_t> placed_source(source);
  Simple::Array<std::int32_t> placed_destination(destination);
  const StatePoolView<Format> view{placed_pool.data(), slots, heads, stride};
  Placed<Simple, float> query(problem.query, Layout::bthd);
  Placed<Simple, float> key(problem.key, Layout::bthd);
  Placed<Simple, float> value(problem.value, Layout::bthd);
  Placed<Simple, float> key_encoder(problem.key_encoder, Layout::bthd);
  Placed<Simple, float> value_encoder(problem.value_encoder, Layout::bthd);
  Placed<Simple, float> output(problem.output_shape(), Layout::bthd);
  PrefillArgs<Config> args{.query = query.view(), .key = key.view(), .value = value.view()};
  if (encoder) {
    args.key_encoder = key_encoder.view();
    args.value_encoder = value_encoder.view();
  }
  args.output = output.view();
  args.initial_state = {view, placed_source.data()};
  args.final_state = {view, placed_destination.data()};
  JRT_REQUIRE_OK(prefill(args, Concurrent::execution()));
  pool = placed_pool.read();
  const auto result = output.read();
  for (std::int64_t b = 0; b < 4; ++b) {
    CAPTURE(b);
    if (b < 2) {
      CHECK(batch_slice(result, b) == batch_slice(expected.output, b));
    } else {
      for (const float y : batch_slice(result, b).values) {
        CHECK(y == 0);
      }
    }
  }
  for (std::int64_t slot = 0; slot < slots; ++slot) {
    CAPTURE(slot);
    const float* const now = pool.data() + slot * stride;
    const bool written = slot == 5 || slot == 6;
    for (std::int64_t i = 0; i < stride; ++i) {
      const bool number =
          i < heads * Format::head_elements && i % Format::head_elements < Format::normaliser_offset + Format::rows;
      if (written && number) {
        const std::int64_t b = slot == 5 ? 0 : 1;
        REQUIRE(now[i] == expected.states[static_cast<std::size_t>(b * heads * Format::head_elements + i)]);
      } else {
        REQUIRE(std::memcmp(&now[i], &before[static_cast<std::size_t>(slot * stride + i)], sizeof(float)) == 0);
      }
    }
  }
}

}  // namespace
}  // namespace jrt::test
