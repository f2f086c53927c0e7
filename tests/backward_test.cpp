// SPDX-License-Identifier: Apache-2.0
#include <jrt/backward.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "support/backend.hpp"
#include "support/backward_problem.hpp"
#include "support/configs.hpp"
#include "support/fuzz.hpp"

namespace jrt::test {
namespace {

template <class Config>
void check_all_sizes() {
  for (const std::int64_t tokens : edge_lengths()) {
    for (const std::int64_t prefix : {std::int64_t{0}, std::int64_t{1}, tokens / 2, tokens}) {
      if (prefix <= tokens && (prefix == 0 || Config::Mask::reads_encoder)) {
        CAPTURE(tokens);
        CAPTURE(prefix);
        const Problem<Config> problem(ProblemShape{.tokens = tokens, .prefix = prefix, .heads = 1, .query_heads = 1});
        // Sums without states before and after are those of other cases.
        check_against_reference<Simple>(problem, prefix == 0 ? Loss<Config>(problem) : loss_with_states(problem));
      }
    }
  }
}

TEST_CASE("gradients agree with the chain rule at every size, prefix mask") {
  check_all_sizes<Prefix<double>>();
}
TEST_CASE("gradients agree with the chain rule at every size, causal mask") {
  check_all_sizes<Causal<double>>();
}
TEST_CASE("gradients agree with the chain rule at every size, full mask") {
  check_all_sizes<Full<double>>();
}
TEST_CASE("gradients agree with the chain rule at every size, no closed form") {
  check_all_sizes<PrefixElu<double>>();
}

TEST_CASE_TEMPLATE("gradients are within the bound of each element type", Config, Prefix<float, 16, 64>,
                   Prefix<Half, 16, 64>, Prefix<BFloat16, 16, 64>, Causal<BFloat16, 16, 64>) {
  const std::int64_t prefix = Config::Mask::reads_encoder ? 150 : 0;
  const Problem<Config> problem({.batch = 1, .tokens = 300, .prefix = prefix});
  check_against_reference<Simple>(problem);
  check_against_reference<Simple>(problem, loss_with_states(problem));
}

TEST_CASE_TEMPLATE("values with a common mean cost the gradients of queries no accuracy", Config, Prefix<BFloat16, 16, 64>,
                   Prefix<Half, 16, 64>, PrefixElu<BFloat16>) {
  using E = typename Config::Element;
  Problem<Config> problem({.batch = 1, .tokens = 1000, .prefix = 500, .heads = 1, .query_heads = 1});
  for (auto* const values : {&problem.value, &problem.value_encoder}) {
    for (E& value : values->values) {
      value = convert<E>(convert<float>(value) + 1.0F);
    }
  }
  check_against_reference<Simple>(problem, loss_with_states(problem));
}

TEST_CASE_TEMPLATE("gradients stay within their bounds over 131072 tokens", E, float, BFloat16) {
  // The oracle is quadratic; the same operator in double, which the cases above tie to it, takes its place.
  using Config = Prefix<E, 16, 16>;
  const Problem<Config> problem({.batch = 1, .tokens = 131'072, .prefix = 65'536, .heads = 1, .query_heads = 1});
  const Loss<Config> loss(problem);
  Loss<InDouble<Config>> exact(in_double(problem));
  exact.output_gradient = converted<double>(loss.output_gradient);
  check_gradients(run_backward<Simple>(problem, loss), run_backward<Simple>(in_double(problem), exact), loss,
                  gradient_tolerance<E>());
}

TEST_CASE_TEMPLATE("gradients of grouped heads are summed over their query heads", Config, Prefix<double>,
                   PrefixElu<double>, Full<double>) {
  const std::int64_t prefix = Config::Mask::reads_encoder ? 40 : 0;
  const Problem<Config> problem({.batch = 1, .tokens = 110, .prefix = prefix, .heads = 2, .query_heads = 6});
  check_against_reference<Concurrent>(problem, loss_with_states(problem));
}

TEST_CASE_TEMPLATE("every layout gives the same gradients, bitwise on the same kernels", E, float, Half) {
  const Problem<Prefix<E>> problem({.batch = 3, .tokens = 60, .prefix = 20, .heads = 2, .query_heads = 4});
  const Loss<Prefix<E>> loss(problem);
  const auto contiguous = run_backward<Simple>(problem, loss);
  for (const Layout layout : all_layouts) {
    CAPTURE(static_cast<int>(layout));
    const auto placed = run_backward<Simple>(problem, loss, {.layout = layout});
    if (same_kernels_as_aligned<Prefix<E>>(layout)) {
      CHECK(placed == contiguous);
    } else {
      check_gradients(placed, contiguous, loss, gradient_tolerance<E>());
    }
  }
}

TEST_CASE_TEMPLATE("lengths, prefixes and pads of sequences; positions without a token have gradient 0", Config,
                   Prefix<double>, PrefixElu<double>) {
  const auto problem = uneven_problem<Config>();
  check_against_reference<Concurrent>(problem, loss_with_states(problem));
  const auto gradients = run_backward<Simple>(problem, Loss<Config>(problem));
  for (std::int64_t t = 0; t < 150; ++t) {
    CHECK((gradients.query.at(1, t, 3, 0) != 0) == (t >= 30 && t < 70));
    CHECK((gradients.value.at(1, t, 1, 0) != 0) == (t >= 30 && t < 70));
    CHECK(gradients.key.at(2, t, 0, 0) == 0);
  }
  for (std::int64_t t = 0; t < 40; ++t) {
    CHECK((gradients.key_encoder.at(1, t, 0, 0) != 0) == (t >= 30 && t < 35));
    CHECK((gradients.value_encoder.at(3, t, 0, 0) != 0) == (t >= 5 && t < 7));
  }
}

TEST_CASE_TEMPLATE("packed sequences have the gradients of separate ones", Config, Prefix<double>, Prefix<float, 16, 64>) {
  Problem<Config> packed({.batch = 1, .tokens = 200, .prefix = 90, .heads = 2, .query_heads = 4});
  packed.sequences.count = 4;
  packed.sequences.cu_seqlens = {0, 63, 63, 128, 200};
  packed.sequences.cu_encoder_seqlens = {0, 40, 40, 40, 90};
  check_against_reference<Concurrent>(packed, loss_with_states(packed));
}

TEST_CASE("a sequence without initial state starts empty, and its slot still receives the gradient") {
  const Problem<Prefix<double>> problem({.tokens = 50, .prefix = 20});
  check_against_reference<Simple>(problem, loss_with_states(problem), {.has_initial_state = {0, 1}});
}

TEST_CASE_TEMPLATE("the gradient of a sequence in pieces is that of the whole", Backend, JRT_TEST_BACKENDS) {
  using Config = Prefix<double>;
  const Problem<Config> whole({.tokens = 150, .prefix = 60});
  const auto loss = loss_with_states(whole);
  const auto expected = run_backward<Backend>(whole, loss);

  // Forward: a piece with the encoder region, then one without that starts from its state.
  const auto piece = [&](std::int64_t first, std::int64_t count) {
    Problem<Config> part = whole;
    part.query = token_slice(whole.query, first, count);
    part.key = token_slice(whole.key, first, count);
    part.value = token_slice(whole.value, first, count);
    return part;
  };
  const Problem<Config> beginning = piece(0, 67);
  Problem<Config> rest = piece(67, 83);
  rest.key_encoder = token_slice(whole.key_encoder, 0, 0);
  rest.value_encoder = token_slice(whole.value_encoder, 0, 0);
  Loss<Config> rest_loss(rest);
  rest_loss.output_gradient = token_slice(loss.output_gradient, 67, 83);
  rest_loss.final_state_gradient = loss.final_state_gradient;
  rest_loss.initial_state = run_prefill<Backend>(beginning, loss.initial_state).states;
  const auto of_rest = run_backward<Backend>(rest, rest_loss);
  Loss<Config> beginning_loss(beginning);
  beginning_loss.output_gradient = token_slice(loss.output_gradient, 0, 67);
  beginning_loss.final_state_gradient = of_rest.initial_state;
  beginning_loss.initial_state = loss.initial_state;
  auto joined = run_backward<Backend>(beginning, beginning_loss);
  joined.query = joined_tokens(joined.query, of_rest.query);
  joined.key = joined_tokens(joined.key, of_rest.key);
  joined.value = joined_tokens(joined.value, of_rest.value);
  check_gradients(joined, expected, loss, 1e-11);
}

TEST_CASE_TEMPLATE("gradients are linear in the gradients of what leaves the call", Backend, JRT_TEST_BACKENDS) {
  using Config = Prefix<double>;
  const Problem<Config> problem({.tokens = 100, .prefix = 30});
  const auto a = loss_with_states(problem);
  Loss<Config> b(problem, 99);
  b.initial_state = a.initial_state;
  b.final_state_gradient = random_state_gradient<Config>(2, 2, 98);
  auto both = a;
  for (std::size_t i = 0; i < both.output_gradient.values.size(); ++i) {
    both.output_gradient.values[i] += 2 * b.output_gradient.values[i];
  }
  for (std::size_t i = 0; i < both.final_state_gradient.size(); ++i) {
    both.final_state_gradient[i] += 2 * b.final_state_gradient[i];
  }
  auto sum = run_backward<Backend>(problem, a);
  const auto of_b = run_backward<Backend>(problem, b);
  const auto add = [](auto& to, const auto& from) {
    for (std::size_t i = 0; i < to.size(); ++i) {
      to[i] += 2 * from[i];
    }
  };
  add(sum.query.values, of_b.query.values);
  add(sum.key.values, of_b.key.values);
  add(sum.value.values, of_b.value.values);
  add(sum.key_encoder.values, of_b.key_encoder.values);
  add(sum.value_encoder.values, of_b.value_encoder.values);
  add(sum.initial_state, of_b.initial_state);
  check_gradients(run_backward<Backend>(problem, both), sum, both, 1e-12);
}

TEST_CASE_TEMPLATE("gradients left out change no other, to the bit", Config, Prefix<float, 16, 64>, PrefixElu<float>,
                   Prefix<BFloat16, 16, 64>) {
  const Problem<Config> problem({.tokens = 130, .prefix = 50, .heads = 1, .query_heads = 2});
  const auto loss = loss_with_states(problem);
  const auto all = run_backward<Simple>(problem, loss);
  const auto same_if_there = [](const auto& some, const auto& whole) { CHECK((some.values.empty() || some == whole)); };
  for (int left_out = 0; left_out < 64; ++left_out) {
    CAPTURE(left_out);
    const Wanted wanted{(left_out & 1) == 0, (left_out & 2) == 0,  (left_out & 4) == 0,
                        (left_out & 8) == 0, (left_out & 16) == 0, (left_out & 32) == 0};
    const auto some = run_backward<Simple>(problem, loss, {}, wanted);
    CHECK(some.query.values.empty() == !wanted.query);
    same_if_there(some.query, all.query);
    same_if_there(some.key, all.key);
    same_if_there(some.value, all.value);
    same_if_there(some.key_encoder, all.key_encoder);
    same_if_there(some.value_encoder, all.value_encoder);
    CHECK((some.initial_state.empty() || some.initial_state == all.initial_state));
  }
}

struct CausalSquare : Causal<double> {
  using FeatureMap = Square<16>;
};

TEST_CASE("a query whose denominator is 0 has gradient 0, and gives none") {
  // Its features are 0, and with them its denominator.
  using Config = CausalSquare;
  Problem<Config> problem({.batch = 1, .tokens = 3, .heads = 1, .query_heads = 1});
  std::fill_n(&problem.query.at(0, 1, 0, 0), 16, 0.0);
  Loss<Config> loss(problem);
  std::fill_n(&loss.output_gradient.at(0, 0, 0, 0), 24, 0.0);
  std::fill_n(&loss.output_gradient.at(0, 2, 0, 0), 24, 0.0);
  const auto gradients = run_backward<Simple>(problem, loss);
  for (const auto& tensor : {gradients.query, gradients.key, gradients.value}) {
    CHECK(std::all_of(tensor.values.begin(), tensor.values.end(), [](double value) { return value == 0; }));
  }
}

TEST_CASE("a value that is not a number reaches the gradients that depend on it") {
  using Config = Prefix<float, 16, 64>;
  Problem<Config> problem({.batch = 1, .tokens = 100, .prefix = 0, .heads = 1, .query_heads = 1});
  problem.value.at(0, 50, 0, 3) = poison<float>();
  const auto gradients = run_backward<Simple>(problem, Loss<Config>(problem));
  CHECK(gradients.query.at(0, 20, 0, 0) == gradients.query.at(0, 20, 0, 0));
  CHECK(gradients.query.at(0, 70, 0, 0) != gradients.query.at(0, 70, 0, 0));
  CHECK(gradients.key.at(0, 50, 0, 0) != gradients.key.at(0, 50, 0, 0));
}

TEST_CASE_TEMPLATE("with a split by length, a sequence has the same gradients in any batch", E, float, BFloat16) {
  using Config = SplitByLength<Prefix<E, 16, 64>, 128>;
  const Problem<Config> batch({.batch = 3, .tokens = 700, .prefix = 300});
  const auto loss = loss_with_states(batch);
  const auto together = run_backward<Concurrent>(batch, loss);
  for (std::int64_t b = 0; b < 3; ++b) {
    Problem<Config> alone;
    alone.query = batch_slice(batch.query, b);
    alone.key = batch_slice(batch.key, b);
    alone.value = batch_slice(batch.value, b);
    alone.key_encoder = batch_slice(batch.key_encoder, b);
    alone.value_encoder = batch_slice(batch.value_encoder, b);
    Loss<Config> loss_alone(alone);
    loss_alone.output_gradient = batch_slice(loss.output_gradient, b);
    const auto numbers = static_cast<std::ptrdiff_t>(state_numbers<Config>(1, 2));
    loss_alone.initial_state.assign(loss.initial_state.begin() + b * numbers,
                                    loss.initial_state.begin() + (b + 1) * numbers);
    loss_alone.final_state_gradient.assign(loss.final_state_gradient.begin() + b * numbers,
                                           loss.final_state_gradient.begin() + (b + 1) * numbers);
    const auto of_one = run_backward<Simple>(alone, loss_alone);
    CHECK(of_one.query == batch_slice(together.query, b));
    CHECK(of_one.key == batch_slice(together.key, b));
    CHECK(of_one.value == batch_slice(together.value, b));
    CHECK(of_one.key_encoder == batch_slice(together.key_encoder, b));
    CHECK(of_one.value_encoder == batch_slice(together.value_encoder, b));
  }
}

TEST_CASE_TEMPLATE("split sequences: gradients within the bound, the same from run to run", Config, Prefix<float, 16, 64>,
                   Causal<float, 16, 64>, Full<float, 16, 64>, Prefix<BFloat16, 16, 64>,
                   SplitByLength<PrefixElu<float>, 64>) {
  const std::int64_t prefix = Config::Mask::reads_encoder ? 520 : 0;
  const Problem<Config> problem({.batch = 1, .tokens = 530, .prefix = prefix, .heads = 1, .query_heads = 1});
  const auto loss = loss_with_states(problem);
  const auto gradients = run_backward<Concurrent>(problem, loss);
  check_gradients(gradients, reference_gradients(problem, loss), loss, gradient_tolerance<typename Config::Element>());
  CHECK(run_backward<Concurrent>(problem, loss) == gradients);
}

TEST_CASE_TEMPLATE("random calls agree with the chain rule", Config, Prefix<double>, Causal<double>, Full<double>,
                   PrefixElu<double>, Prefix<float, 16, 64>, Prefix<BFloat16, 16, 64>, Causal<BFloat16, 16, 64>,
                   SplitByLength<PrefixElu<float>, 64>) {
#if defined(JRT_TEST_CUDA)
  constexpr int cases = 65;
#else
  constexpr int cases = 8;  // the oracle takes most of the time, in every preset
#endif
  Random random(4711);
  for (int i = 0; i < cases; ++i) {
    CAPTURE(i);
    const Problem<Config> problem = random_problem<Config>(random, 120);
    const Layout layout = all_layouts[random.between(0, 3)];
    const auto loss = random.chance(0.5) ? loss_with_states(problem) : Loss<Config>(problem);
    constexpr double bound = gradient_tolerance<typename Config::Element>();
    const std::int64_t tokens = problem.query.shape.batch * problem.query.shape.tokens;
#if defined(JRT_TEST_CUDA)
    // In 16 bits, gradients of a handful of tokens are differences of numbers that are larger than they: 1.5e-2 on Hopper.
    const bool few = sizeof(typename Config::Element) == 2 && tokens < 16;
#else
    constexpr bool few = false;
#endif
    CAPTURE(tokens);
    CAPTURE(problem.key_encoder.shape.tokens);
    CAPTURE(problem.sequences.count);
    check_gradients(run_backward<Concurrent>(problem, loss, {.layout = layout}), reference_gradients(problem, loss), loss,
                    few ? 2 * bound : bound);
  }
}

#if !defined(JRT_TEST_CUDA)
TEST_CASE_TEMPLATE("gradients do not depend on the number of threads", Config, Prefix<float, 16, 64>, Full<float, 16, 64>,
                   PrefixElu<float>) {
  for (const std::int64_t heads : {1, 3}) {
    const std::int64_t prefix = Config::Mask::reads_encoder ? 500 : 0;
    const Problem<Config> problem({.batch = 1, .tokens = 1500, .prefix = prefix, .heads = heads, .query_heads = heads});
    const auto loss = loss_with_states(problem);
    CHECK(run_backward<Simple>(problem, loss) == run_backward<Concurrent, Simple>(problem, loss));
  }
}
#endif

}  // namespace
}  // namespace jrt::test
