// SPDX-License-Identifier: Apache-2.0
#include <jrt/prefill.hpp>

#include <doctest/doctest.h>

#include <algorithm>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/linear_problem.hpp"

namespace jrt::test {
namespace {

/// Outputs, and denominators of an operator that has them, within the specified bound of the oracle, which works in double
/// on the same rounded inputs.
template <class Backend, class Config>
void check_against_reference(const Problem<Config>& problem, const StateNumbers<Config>& initial = {},
                             RunOptions options = {}) {
  constexpr double bound = tolerance<typename Config::Element>();
  options.denominators = Config::Normaliser::uses_denominator;
  Tensor<double> denominators;
  const auto results = run_prefill<Backend>(problem, initial, options);
  const auto expected = reference_output(problem, initial, &denominators);
  CHECK(relative_error(results.output.values, expected.values) <= bound);
  if (options.denominators) {
    CHECK(relative_error(results.denominators.values, denominators.values) <= bound);
  }
}

template <class Config>
void check_all_sizes() {
  for (const std::int64_t tokens : edge_lengths()) {
    for (const std::int64_t prefix : {std::int64_t{0}, std::int64_t{1}, tokens / 2, tokens}) {
      if (prefix <= tokens && (prefix == 0 || Config::Mask::reads_encoder)) {
        CAPTURE(tokens);
        CAPTURE(prefix);
        check_against_reference<Simple>(Problem<Config>(ProblemShape{.tokens = tokens, .prefix = prefix}));
      }
    }
  }
}

TEST_CASE("prefill agrees with the formula at every size, prefix mask") {
  check_all_sizes<Prefix<double>>();
}
TEST_CASE("prefill agrees with the formula at every size, causal mask") {
  check_all_sizes<Causal<double>>();
}
TEST_CASE("prefill agrees with the formula at every size, full mask") {
  check_all_sizes<Full<double>>();
}
TEST_CASE("prefill agrees with the formula at every size, no closed form") {
  check_all_sizes<PrefixElu<double>>();
}

TEST_CASE_TEMPLATE("prefill is within the bound of each element type", E, float, double, Half, BFloat16) {
  const ProblemShape shape{.batch = 1, .tokens = 300, .prefix = 150};
  check_against_reference<Simple>(Problem<Prefix<E, 16, 64>>(shape));
  check_against_reference<Simple>(Problem<Causal<E, 16, 64>>({.batch = 1, .tokens = 300}));
  check_against_reference<Simple>(Problem<Full<E, 16, 64>>({.batch = 1, .tokens = 300}));
}

TEST_CASE("float32 stays within its bound over thousands of tokens, against the formula") {
  check_against_reference<Concurrent>(
      Problem<Prefix<float, 16, 64>>({.batch = 1, .tokens = 3000, .prefix = 1500, .heads = 1, .query_heads = 1}));
}

TEST_CASE("float32 stays within its bound over tens of thousands of tokens") {
  // The oracle is quadratic; the same operator in double, which the cases above tie to it, takes its place.
  using Config = Prefix<float, 16, 16>;
  const Problem<Config> problem({.batch = 1, .tokens = 60'000, .prefix = 30'000, .heads = 1, .query_heads = 1});
  const auto expected = run_prefill<Simple>(in_double(problem));
  const auto results = run_prefill<Simple>(problem);
  CHECK(relative_error(results.output.values, expected.output.values) <= tolerance<float>());
  CHECK(relative_error(used_numbers<Config>(results.states), used_numbers<InDouble<Config>>(expected.states)) <=
        tolerance<float>());
}

TEST_CASE_TEMPLATE("published and odd dimensions", Config, Prefix<float, 16, 112>, Prefix<float, 8, 32>,
                   Prefix<float, 24, 48>, Prefix<float, 5, 7>, Prefix<float, 1, 1>, Prefix<float, 60, 16>) {
  check_against_reference<Simple>(Problem<Config>({.tokens = 101, .prefix = 50}));
}

TEST_CASE_TEMPLATE("the output is the numerator alone without normaliser", Config, WithoutNormaliser<Prefix<double>>,
                   WithoutNormaliser<Full<double>>) {
  const std::int64_t prefix = Config::Mask::reads_encoder ? 33 : 0;
  check_against_reference<Simple>(Problem<Config>({.tokens = 70, .prefix = prefix}));
}

TEST_CASE_TEMPLATE("every layout gives bitwise the same result, on the same kernels", E, float, Half) {
  const Problem<Prefix<E>> problem({.batch = 3, .tokens = 60, .prefix = 20, .heads = 2, .query_heads = 4});
  const auto contiguous = run_prefill<Simple>(problem);
  for (const Layout layout : all_layouts) {
    CAPTURE(static_cast<int>(layout));
    const auto placed = run_prefill<Simple>(problem, {}, {.layout = layout});
    if (same_kernels_as_aligned<Prefix<E>>(layout)) {
      CHECK(placed.output == contiguous.output);
      CHECK(placed.states == contiguous.states);
    } else {
      CHECK(relative_error(placed.output.values, contiguous.output.values) <= tolerance<E>());
      CHECK(relative_error(placed.states, contiguous.states) <= tolerance<E>());
    }
  }
}

TEST_CASE_TEMPLATE("denominators: outputs do not depend on them, and positions without a token have 0", Config,
                   Prefix<float, 16, 64>, Prefix<BFloat16, 16, 64>) {
  Problem<Config> problem({.batch = 3, .tokens = 150, .prefix = 40, .heads = 2, .query_heads = 4});
  problem.sequences.seq_lens = {150, 70, 0};
  problem.sequences.prefix_lens = {40, 40, 0};
  problem.sequences.left_pads = {0, 30, 0};
  for (const Layout layout : all_layouts) {
    CAPTURE(static_cast<int>(layout));
    const auto without = run_prefill<Concurrent>(problem, {}, {.layout = layout});
    const auto with = run_prefill<Concurrent>(problem, {}, {.layout = layout, .denominators = true});
    CHECK(with.output == without.output);
    CHECK(with.states == without.states);
    Tensor<double> expected;
    static_cast<void>(reference_output(problem, {}, &expected));
    CHECK(relative_error(with.denominators.values, expected.values) <= tolerance<typename Config::Element>());
    for (std::int64_t t = 0; t < 150; ++t) {
      CHECK((with.denominators.at(1, t, 3, 0) != 0) == (t >= 30 && t < 70));
      CHECK(with.denominators.at(2, t, 0, 0) == 0);
    }
  }
}

TEST_CASE_TEMPLATE("outputs over parts of the keys merge by their denominators", Backend, JRT_TEST_BACKENDS) {
  using Config = Causal<double>;
  const Problem<Config> problem({.batch = 2, .tokens = 90});
  const auto earlier = random_states<Config>(2, 2, 5);
  const auto own = run_prefill<Backend>(problem, {}, {.denominators = true});
  const auto whole = run_prefill<Backend>(problem, earlier, {.denominators = true});
  Tensor<double> merged = whole.output;
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t t = 0; t < 90; ++t) {
      for (std::int64_t h = 0; h < 2; ++h) {
        const double z = whole.denominators.at(b, t, h, 0);
        const double own_z = own.denominators.at(b, t, h, 0);
        std::vector<double> features(StateFormatOf<Config>::rows);
        expand_query(Config::FeatureMap{}, &problem.query.at(b, t, h, 0), features.data(), t + 1);
        for (std::int64_t c = 0; c < Config::value_dim; ++c) {
          const double* const state = earlier.data() + (b * 2 + h) * StateFormatOf<Config>::head_elements;
          double numerator = 0;
          for (std::size_t r = 0; r < features.size(); ++r) {
            numerator += features[r] * state[static_cast<std::int64_t>(r) * Config::value_dim + c];
          }
          merged.at(b, t, h, c) = (own.output.at(b, t, h, c) * own_z + numerator) / z;
        }
      }
    }
  }
  CHECK(relative_error(merged.values, whole.output.values) <= tolerance<double>());
}

TEST_CASE_TEMPLATE("grouped query heads equal repeated key heads", Config, Prefix<double>, Full<double>) {
  const std::int64_t prefix = Config::Mask::reads_encoder ? 17 : 0;
  const Problem<Config> grouped({.tokens = 55, .prefix = prefix, .heads = 2, .query_heads = 6});
  Problem<Config> repeated = grouped;
  for (auto* tensor : {&repeated.key, &repeated.value, &repeated.key_encoder, &repeated.value_encoder}) {
    auto wide = *tensor;
    wide.shape.heads = 6;
    wide.values.resize(element_count(wide.shape));
    for (std::int64_t b = 0; b < wide.shape.batch; ++b) {
      for (std::int64_t t = 0; t < wide.shape.tokens; ++t) {
        for (std::int64_t h = 0; h < 6; ++h) {
          for (std::int64_t c = 0; c < wide.shape.dim; ++c) {
            wide.at(b, t, h, c) = tensor->at(b, t, h / 3, c);
          }
        }
      }
    }
    *tensor = wide;
  }
  CHECK(run_prefill<Simple>(grouped).output == run_prefill<Simple>(repeated).output);
}

TEST_CASE_TEMPLATE("an initial state is part of every sum", Backend, JRT_TEST_BACKENDS) {
  using Config = Prefix<double>;
  const Problem<Config> problem({.batch = 2, .tokens = 70, .prefix = 30});
  check_against_reference<Backend>(problem, random_states<Config>(2, 2, 5));
}

TEST_CASE("a slot without initial state is ignored, whatever it holds") {
  using Config = Prefix<double>;
  const Problem<Config> problem({.batch = 2, .tokens = 20, .prefix = 10});
  StateNumbers<Config> poisoned(state_numbers<Config>(2, 2), poison<double>());
  const auto fresh = run_prefill<Simple>(problem);
  const auto ignoring = run_prefill<Simple>(problem, poisoned, {.has_initial_state = {0, 0}});
  CHECK(ignoring.output == fresh.output);
  CHECK(used_numbers<Config>(ignoring.states) == used_numbers<Config>(fresh.states));
}

TEST_CASE_TEMPLATE("packed sequences equal separate calls", Backend, JRT_TEST_BACKENDS) {
  using Config = Prefix<float>;
  // Lengths around the chunk, an empty sequence, prefixes from none to all.
  const std::vector<std::int64_t> lengths{49, 0, 1, 100, 48};
  const std::vector<std::int64_t> prefixes{20, 0, 1, 100, 0};
  const std::int64_t tokens = 198;
  const std::int64_t encoder_tokens = 121;
  Problem<Config> packed({.batch = 1, .tokens = tokens, .prefix = encoder_tokens});
  packed.sequences.count = 5;
  packed.sequences.cu_seqlens = {0, 49, 49, 50, 150, 198};
  packed.sequences.cu_encoder_seqlens = {0, 20, 20, 21, 121, 121};
  const auto together = run_prefill<Backend>(packed);
  const auto numbers = StateFormatOf<Config>::head_elements * 2;
  std::int64_t first = 0;
  std::int64_t first_encoder = 0;
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    CAPTURE(s);
    Problem<Config> one;
    one.query = token_slice(packed.query, first, lengths[s]);
    one.key = token_slice(packed.key, first, lengths[s]);
    one.value = token_slice(packed.value, first, lengths[s]);
    one.key_encoder = token_slice(packed.key_encoder, first_encoder, prefixes[s]);
    one.value_encoder = token_slice(packed.value_encoder, first_encoder, prefixes[s]);
    const auto alone = run_prefill<Backend>(one);
    CHECK(token_slice(together.output, first, lengths[s]) == alone.output);
    const auto begin = together.states.begin() + static_cast<std::ptrdiff_t>(s) * numbers;
    CHECK(std::vector<float>(begin, begin + numbers) == alone.states);
    first += lengths[s];
    first_encoder += prefixes[s];
  }
}

TEST_CASE("per-sequence prefixes and lengths in a dense batch") {
  using Config = Prefix<double>;
  Problem<Config> problem({.batch = 4, .tokens = 60, .prefix = 40});
  problem.sequences.prefix_lens = {0, 40, 7, 33};
  check_against_reference<Simple>(problem);
  problem.sequences.seq_lens = {60, 41, 7, 48};
  check_against_reference<Simple>(problem);
  const auto output = run_prefill<Simple>(problem).output;
  CHECK(output.at(1, 41, 0, 0) == 0);
  CHECK(output.at(2, 59, 1, 23) == 0);
}

struct Squares : BasedLinearAttention<float, 4, 4> {
  using FeatureMap = Square<4>;
};

TEST_CASE_TEMPLATE("no tokens leave the state unchanged to the bit", Config, Prefix<float>, Prefix<BFloat16>) {
  const auto initial = random_states<Config>(2, 2, 9);
  const auto none = run_prefill<Simple>(Problem<Config>({.tokens = 0}), initial);
  CHECK(used_numbers<Config>(none.states) == used_numbers<Config>(initial));

  // Beside a sequence that has some.
  Problem<Config> packed({.batch = 1, .tokens = 30, .prefix = 20});
  packed.sequences.count = 2;
  packed.sequences.cu_seqlens = {0, 0, 30};
  packed.sequences.cu_encoder_seqlens = {0, 0, 20};
  const auto results = run_prefill<Simple>(packed, initial);
  const auto half = static_cast<std::ptrdiff_t>(initial.size() / 2);
  CHECK(used_numbers<Config>({results.states.begin(), results.states.begin() + half}) ==
        used_numbers<Config>({initial.begin(), initial.begin() + half}));
}

TEST_CASE("no key gives zero") {
  // The only key has a value of zero weight under a map whose features vanish.
  Problem<Squares> zero_keys({.batch = 1, .tokens = 3});
  std::fill(zero_keys.key.values.begin(), zero_keys.key.values.end(), 0.0F);
  for (const float y : run_prefill<Simple>(zero_keys).output.values) {
    CHECK(y == 0);
  }
}

TEST_CASE("the workspace may be exactly as large as asked for, at any alignment, and not one byte less") {
  using Config = SplitByLength<Prefix<float>, 48>;
  const Problem<Config> problem({.batch = 2, .tokens = 150, .prefix = 100});
  Placed<Concurrent, float> query(problem.query, Layout::bthd);
  Placed<Concurrent, float> key(problem.key, Layout::bthd);
  Placed<Concurrent, float> value(problem.value, Layout::bthd);
  Placed<Concurrent, float> key_encoder(problem.key_encoder, Layout::bthd);
  Placed<Concurrent, float> value_encoder(problem.value_encoder, Layout::bthd);
  Placed<Concurrent, float> output(problem.output_shape(), Layout::bthd);
  PrefillArgs<Config> args;
  args.query = query.view();
  args.key = key.view();
  args.value = value.view();
  args.key_encoder = key_encoder.view();
  args.value_encoder = value_encoder.view();
  args.output = output.view();
  const auto on = Concurrent::execution();
  const std::size_t bytes = prefill_workspace_bytes(args, on);
  const auto expected = run_prefill<Concurrent>(problem).output;
  for (const std::size_t shift : {0, 1, 7, 63}) {
    CAPTURE(shift);
    // Poison around the workspace shows whether the call stays inside; poison in it, that it reads nothing unwritten.
    Concurrent::Array<unsigned char> workspace(std::vector<unsigned char>(bytes + shift + 64, 0xff));
    JRT_REQUIRE_OK(prefill(args, {workspace.data() + shift, bytes}, on));
    CHECK(output.read() == expected);
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

}  // namespace
}  // namespace jrt::test
