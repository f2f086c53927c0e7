// SPDX-License-Identifier: Apache-2.0
#include <jrt/mixer/window_attention.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "support/backend.hpp"
#include "support/fuzz.hpp"
#include "support/window_backward_problem.hpp"

namespace jrt::test {
namespace {

/// Small, rotated, with a window that a few tokens fill: what most cases use.
using Small = Turned<double, 16, 4>;
using SmallFloat = Turned<float, 16, 4>;

/// Values of another dimension than keys.
template <class E>
struct Wide : Turned<E, 16, 7> {
  static constexpr int value_dim = 48;
};
struct Odd : Plain<float, 5, 3> {
  static constexpr int value_dim = 7;
};

TEST_CASE_TEMPLATE("gradients agree with the formula at every size", Config, Small, Plain<double, 16, 63>,
                   Turned<BFloat16, 64, 128>, Plain<Half, 16, 4>) {
  for (const std::int64_t tokens : {0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 192, 300}) {
    CAPTURE(tokens);
    check_gradients<Simple>(WindowProblem<Config>({.batch = 1, .tokens = tokens}));
  }
}

TEST_CASE_TEMPLATE("gradients for windows around an edge", Config, Plain<double, 16, 0>, Turned<double, 16, 1>,
                   Plain<double, 40, 15>, Turned<double, 40, 64>, Turned<double, 16, 65>, Plain<double, 112, 128>,
                   Plain<double, 16, 127>, Plain<double, 16, 300>, Plain<BFloat16, 16, 0>, Plain<BFloat16, 32, 1>,
                   Turned<BFloat16, 64, 63>, Turned<BFloat16, 64, 64>, Plain<BFloat16, 64, 127>, Plain<BFloat16, 16, 300>) {
  check_gradients<Concurrent>(WindowProblem<Config>({.batch = 1, .tokens = 317, .heads = 1, .query_heads = 2}));
}

TEST_CASE_TEMPLATE("gradients are within the bound of each element type", E, float, double, Half, BFloat16) {
  const WindowShape shape{.batch = 1, .tokens = 300};
  check_gradients<Simple>(WindowProblem<Turned<E, 64, 128>>(shape));
  check_gradients<Simple>(WindowProblem<Plain<E, 64, 15>>(shape));
  check_gradients<Simple>(WindowProblem<Plain<E, 16, 4>>(shape));
  check_gradients<Simple>(WindowProblem<Wide<E>>(shape));
}

TEST_CASE_TEMPLATE("gradients of wide and of odd dimensions", Config, Turned<BFloat16, 112, 64>, Plain<Half, 128, 128>,
                   Turned<float, 128, 15>, Plain<BFloat16, 5, 3>, Odd) {
  check_gradients<Simple>(WindowProblem<Config>({.tokens = 101}));
}

TEST_CASE("gradients of thousands of tokens, which several tasks share") {
  check_gradients<Concurrent>(
      WindowProblem<Turned<float, 64, 128>>({.batch = 1, .tokens = 2500, .heads = 1, .query_heads = 1}));
  check_gradients<Concurrent>(WindowProblem<Plain<double, 16, 4>>({.batch = 1, .tokens = 1027, .heads = 1}));
}

TEST_CASE_TEMPLATE("gradients for any scale", Config, Small, Plain<Half, 16, 4>) {
  WindowProblem<Config> problem({.tokens = 30});
  for (const double scale : {0.0, 1.0, -0.7}) {
    CAPTURE(scale);
    problem.scale = scale;
    check_gradients<Simple>(problem);
  }
}

TEST_CASE_TEMPLATE("gradients are finite for scores far beyond the range of the exponential", E, float, BFloat16) {
  WindowProblem<Plain<E, 16, 4>> problem({.tokens = 30});
  problem.scale = 1e3;
  const auto gradients = run_backward<Simple>(problem, random_output_gradient(problem));
  for (const auto* tensor : {&gradients.query, &gradients.key, &gradients.value}) {
    for (const E g : tensor->values) {
      REQUIRE(std::isfinite(convert<float>(g)));
    }
  }
}

TEST_CASE_TEMPLATE("gradients in every layout", Config, Turned<float, 64, 128>, Turned<BFloat16, 64, 128>) {
  const WindowProblem<Config> problem({.batch = 2, .tokens = 70});
  for (const Layout layout : all_layouts) {
    CAPTURE(static_cast<int>(layout));
    check_gradients<Simple>(problem, {.layout = layout});
  }
}

TEST_CASE_TEMPLATE("log_sum_exp is that of the formula, and −∞ where there is no token", Config, Small,
                   Turned<float, 64, 128>, Plain<BFloat16, 64, 15>, Plain<BFloat16, 64, 128>, Plain<Half, 5, 3>) {
  using T = ComputeType<typename Config::Element>;
  WindowProblem<Config> problem({.batch = 3, .tokens = 170});
  problem.sequences.left_pads = {0, 3, 0};
  problem.sequences.seq_lens = {170, 101, 1};
  for (const double scale : {0.25, -0.25}) {
    CAPTURE(scale);
    problem.scale = scale;
    PlacedBackward<Simple, Config> placed(problem, random_output_gradient(problem), Layout::bthd);
    const auto actual = placed.log_sum_exp.read();
    auto query = converted<double>(problem.query);
    auto key = converted<double>(problem.key);
    auto value = converted<double>(problem.value);
    auto output = zero_tensor<double>(problem.output_shape());
    auto expected = zero_tensor<double>(actual.shape);
    PrefillArgs<InDouble<Config>> args;
    args.query = view_of(query);
    args.key = view_of(key);
    args.value = view_of(value);
    args.output = view_of(output);
    args.log_sum_exp = view_of(expected);
    args.sequences = view_of(problem.sequences);
    args.scale = scale;
    reference::prefill(args);
    double worst = 0;
    for (std::size_t i = 0; i < expected.values.size(); ++i) {
      if (std::isinf(expected.values[i])) {
        REQUIRE(actual.values[i] == -std::numeric_limits<T>::infinity());
      } else {
        worst = std::max(worst, std::abs(static_cast<double>(actual.values[i]) - expected.values[i]));
      }
    }
    CHECK(worst <= (sizeof(T) == 4 ? 2e-5 : 1e-12));
  }
}

/// Heads repeated, so that each query head has its own.
template <class E>
Tensor<E> repeated_heads(const Tensor<E>& from, std::int64_t group) {
  Tensor<E> wide = zero_tensor<E>({from.shape.batch, from.shape.tokens, from.shape.heads * group, from.shape.dim});
  for (std::int64_t b = 0; b < wide.shape.batch; ++b) {
    for (std::int64_t t = 0; t < wide.shape.tokens; ++t) {
      for (std::int64_t h = 0; h < wide.shape.heads; ++h) {
        for (std::int64_t c = 0; c < wide.shape.dim; ++c) {
          wide.at(b, t, h, c) = from.at(b, t, h / group, c);
        }
      }
    }
  }
  return wide;
}
/// Groups of heads summed.
template <class E>
Tensor<double> summed_heads(const Tensor<E>& from, std::int64_t group) {
  auto sums = zero_tensor<double>({from.shape.batch, from.shape.tokens, from.shape.heads / group, from.shape.dim});
  for (std::int64_t b = 0; b < from.shape.batch; ++b) {
    for (std::int64_t t = 0; t < from.shape.tokens; ++t) {
      for (std::int64_t h = 0; h < from.shape.heads; ++h) {
        for (std::int64_t c = 0; c < from.shape.dim; ++c) {
          sums.at(b, t, h / group, c) += convert<double>(from.at(b, t, h, c));
        }
      }
    }
  }
  return sums;
}

TEST_CASE_TEMPLATE("gradients of grouped heads are those of repeated heads, summed", Config, Small,
                   Turned<BFloat16, 64, 15>) {
  constexpr double bound = gradient_tolerance<typename Config::Element>();
  const WindowProblem<Config> grouped({.tokens = 90, .heads = 2, .query_heads = 6});
  WindowProblem<Config> repeated = grouped;
  repeated.key = repeated_heads(grouped.key, 3);
  repeated.value = repeated_heads(grouped.value, 3);
  const auto output_gradient = random_output_gradient(grouped);
  const auto a = run_backward<Simple>(grouped, output_gradient);
  const auto b = run_backward<Simple>(repeated, output_gradient);
  CHECK(relative_error(a.query.values, b.query.values) <= bound);
  CHECK(relative_error(a.key.values, summed_heads(b.key, 3).values) <= bound);
  CHECK(relative_error(a.value.values, summed_heads(b.value, 3).values) <= bound);
}

template <class Config>
void check_packed(const std::vector<std::int64_t>& lengths) {
  using E = typename Config::Element;
  WindowProblem<Config> packed({.batch = 1, .tokens = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0})});
  packed.sequences.count = static_cast<std::int64_t>(lengths.size());
  packed.sequences.cu_seqlens = {0};
  for (const std::int64_t length : lengths) {
    packed.sequences.cu_seqlens.push_back(packed.sequences.cu_seqlens.back() + static_cast<std::int32_t>(length));
  }
  const auto output_gradient = random_output_gradient(packed);
  const auto together = run_backward<Concurrent>(packed, output_gradient);
  std::int64_t first = 0;
  for (const std::int64_t length : lengths) {
    CAPTURE(length);
    const auto alone = run_backward<Concurrent>(packed.piece(first, length), token_slice(output_gradient, first, length));
    const auto check = [&](const Tensor<E>& whole, const Tensor<E>& part) {
      CHECK(token_slice(whole, first, length) == part);
    };
    check(together.query, alone.query);
    check(together.key, alone.key);
    check(together.value, alone.value);
    first += length;
  }
}
TEST_CASE("gradients of packed sequences are those of separate calls, to the bit") {
  check_packed<SmallFloat>({49, 0, 1, 100, 5});
  // Prefills of fewer tokens may use other kernels, and with them outputs differ in their last bits.
  check_packed<Turned<BFloat16, 64, 15>>({64, 0, 65, 100, 130});
}

template <class Config>
void check_padding() {
  using E = typename Config::Element;
  WindowProblem<Config> problem({.batch = 4, .tokens = 40});
  problem.sequences.left_pads = {0, 3, 40, 7};
  problem.sequences.seq_lens = {40, 20, 40, 7};
  auto output_gradient = random_output_gradient(problem);
  const auto is_token = [&](std::int64_t b, std::int64_t t) {
    const auto s = static_cast<std::size_t>(b);
    return t >= problem.sequences.left_pads[s] && t < problem.sequences.seq_lens[s];
  };
  // Whatever padding holds.
  for (std::int64_t b = 0; b < 4; ++b) {
    for (std::int64_t t = 0; t < 40; ++t) {
      if (!is_token(b, t)) {
        for (auto* tensor : {&problem.query, &problem.key, &problem.value, &output_gradient}) {
          std::fill_n(&tensor->at(b, t, 0, 0), tensor->shape.heads * tensor->shape.dim, poison<E>());
        }
      }
    }
  }
  const auto gradients = run_backward<Simple>(problem, output_gradient);
  const auto expected = reference_gradients(problem, output_gradient);
  constexpr double bound = gradient_tolerance<E>();
  CHECK(relative_error(gradients.query.values, expected.query.values) <= bound);
  CHECK(relative_error(gradients.key.values, expected.key.values) <= bound);
  CHECK(relative_error(gradients.value.values, expected.value.values) <= bound);
  for (const auto* tensor : {&gradients.query, &gradients.key, &gradients.value}) {
    for (std::int64_t b = 0; b < 4; ++b) {
      for (std::int64_t t = 0; t < 40; ++t) {
        for (std::int64_t h = 0; h < tensor->shape.heads; ++h) {
          REQUIRE((is_token(b, t) || convert<float>(tensor->at(b, t, h, 3)) == 0));
        }
      }
    }
  }
  // A sequence without its padding is the same sequence.
  WindowProblem<Config> alone;
  alone.query = token_slice(batch_slice(problem.query, 1), 3, 17);
  alone.key = token_slice(batch_slice(problem.key, 1), 3, 17);
  alone.value = token_slice(batch_slice(problem.value, 1), 3, 17);
  const auto unpadded = run_backward<Simple>(alone, token_slice(batch_slice(output_gradient, 1), 3, 17));
  CHECK(relative_error(token_slice(batch_slice(gradients.key, 1), 3, 17).values, unpadded.key.values) <= bound);
  CHECK(relative_error(token_slice(batch_slice(gradients.query, 1), 3, 17).values, unpadded.query.values) <= bound);
}
TEST_CASE("gradients of padding are 0, and nobody reads it") {
  check_padding<Small>();
  check_padding<Turned<BFloat16, 16, 4>>();
  check_padding<Plain<Half, 64, 15>>();
}

TEST_CASE("gradients are linear in the output's gradient") {
  const WindowProblem<Small> problem({.tokens = 70});
  const auto first = random_output_gradient(problem, 9);
  const auto second = random_output_gradient(problem, 10);
  auto both = first;
  for (std::size_t i = 0; i < both.values.size(); ++i) {
    both.values[i] = 2 * first.values[i] - 0.5 * second.values[i];
  }
  const auto a = run_backward<Simple>(problem, first);
  const auto b = run_backward<Simple>(problem, second);
  const auto c = run_backward<Simple>(problem, both);
  const auto check = [](const Tensor<double>& of_both, const Tensor<double>& of_first, const Tensor<double>& of_second) {
    auto expected = of_first;
    for (std::size_t i = 0; i < expected.values.size(); ++i) {
      expected.values[i] = 2 * of_first.values[i] - 0.5 * of_second.values[i];
    }
    CHECK(relative_error(of_both.values, expected.values) <= 1e-12);
  };
  check(c.query, a.query, b.query);
  check(c.key, a.key, b.key);
  check(c.value, a.value, b.value);
}

TEST_CASE_TEMPLATE("gradients are the same to the bit: again, on any worker, in any batch, with others left out", Config,
                   SmallFloat, Turned<float, 64, 128>, Turned<BFloat16, 64, 128>, Plain<Half, 112, 15>) {
  const WindowProblem<Config> problem({.batch = 2, .tokens = 1100, .heads = 1, .query_heads = 2});
  const auto output_gradient = random_output_gradient(problem);
  const auto once = run_backward<Simple>(problem, output_gradient);
  CHECK(run_backward<Simple>(problem, output_gradient) == once);
  CHECK(run_backward<Concurrent>(problem, output_gradient) == once);
  WindowProblem<Config> alone;
  alone.query = batch_slice(problem.query, 1);
  alone.key = batch_slice(problem.key, 1);
  alone.value = batch_slice(problem.value, 1);
  const auto of_one = run_backward<Simple>(alone, batch_slice(output_gradient, 1));
  CHECK(of_one.query == batch_slice(once.query, 1));
  CHECK(of_one.key == batch_slice(once.key, 1));
  CHECK(of_one.value == batch_slice(once.value, 1));
  for (int wanted = 0; wanted < 7; ++wanted) {
    CAPTURE(wanted);
    const BackwardOptions options{.query = wanted % 2 != 0, .key = wanted / 2 % 2 != 0, .value = wanted / 4 != 0};
    const auto some = run_backward<Simple>(problem, output_gradient, options);
    CHECK((!options.query || some.query == once.query));
    CHECK((!options.key || some.key == once.key));
    CHECK((!options.value || some.value == once.value));
  }
}

TEST_CASE_TEMPLATE("a query whose log_sum_exp is −∞ saw nothing", Config, Small, Turned<BFloat16, 16, 4>) {
  using E = typename Config::Element;
  using T = ComputeType<E>;
  const WindowProblem<Config> problem({.batch = 1, .tokens = 40, .heads = 1, .query_heads = 1});
  auto output_gradient = random_output_gradient(problem);
  PlacedBackward<Simple, Config> placed(problem, output_gradient, Layout::bthd);
  Tensor<T> log_sums = placed.log_sum_exp.read();
  log_sums.at(0, 20, 0, 0) = -std::numeric_limits<T>::infinity();
  placed.log_sum_exp = Placed<Simple, T>(log_sums, Layout::bthd);
  JRT_REQUIRE_OK(backward(placed.args({}), Simple::execution()));
  const auto gradients = placed.read({});
  std::fill_n(&output_gradient.at(0, 20, 0, 0), Config::value_dim, E{});
  const auto expected = run_backward<Simple>(problem, output_gradient);
  CHECK(gradients == expected);
}

/// The derivative of the oracle's prefill at one input by a central difference, for the loss Σ y·dy.
double difference_quotient(WindowProblem<Small> problem, Tensor<double> WindowProblem<Small>::*input, std::size_t i,
                           const Tensor<double>& output_gradient) {
  constexpr double step = 1e-5;
  double loss[2] = {0, 0};
  const double at = (problem.*input).values[i];
  for (int side = 0; side < 2; ++side) {
    (problem.*input).values[i] = at + (side == 0 ? -step : step);
    const auto output = reference_window(problem);
    for (std::size_t j = 0; j < output.values.size(); ++j) {
      loss[side] += output.values[j] * output_gradient.values[j];
    }
  }
  return (loss[1] - loss[0]) / (2 * step);
}

TEST_CASE("the oracle's gradients are difference quotients of its outputs") {
  WindowProblem<Small> problem({.batch = 2, .tokens = 11, .heads = 1, .query_heads = 2});
  problem.sequences.left_pads = {0, 2};
  problem.sequences.seq_lens = {11, 9};
  problem.scale = 0.4;
  const auto output_gradient = random_output_gradient(problem);
  const auto gradients = reference_gradients(problem, output_gradient);
  const auto check = [&](Tensor<double> WindowProblem<Small>::*input, const Tensor<double>& gradient) {
    std::vector<double> quotients;
    for (std::size_t i = 0; i < gradient.values.size(); ++i) {
      quotients.push_back(difference_quotient(problem, input, i, output_gradient));
    }
    CHECK(relative_error(quotients, gradient.values) <= 1e-6);
  };
  check(&WindowProblem<Small>::query, gradients.query);
  check(&WindowProblem<Small>::key, gradients.key);
  check(&WindowProblem<Small>::value, gradients.value);
}

/// A random call: lengths, pads, packing, groups, scale, layout, and which gradients are wanted.
template <class Config>
double random_gradients(Random& random) {
  WindowShape shape;
  shape.heads = random.between(1, 2);
  shape.query_heads = shape.heads * random.between(1, 3);
  SequenceLists lists;
  const auto as_int = [](std::int64_t number) { return static_cast<std::int32_t>(number); };
  if (random.chance(0.4)) {
    shape.batch = 1;
    lists.count = random.between(1, 5);
    lists.cu_seqlens = {0};
    for (std::int64_t b = 0; b < lists.count; ++b) {
      const std::int64_t tokens = random_length(random, 150);
      lists.cu_seqlens.push_back(lists.cu_seqlens.back() + as_int(tokens));
      lists.left_pads.push_back(random.chance(0.3) ? as_int(random.between(0, tokens)) : 0);
    }
    shape.tokens = lists.cu_seqlens.back();
  } else {
    shape.batch = random.between(1, 3);
    shape.tokens = random_length(random, 250);
    if (random.chance(0.5)) {
      for (std::int64_t b = 0; b < shape.batch; ++b) {
        lists.seq_lens.push_back(as_int(random.between(0, shape.tokens)));
        lists.left_pads.push_back(as_int(random.between(0, lists.seq_lens.back())));
      }
    }
  }
  WindowProblem<Config> problem(shape, static_cast<unsigned>(random.between(1, 1 << 30)));
  problem.sequences = lists;
  problem.scale *= random.chance(0.3) ? 0.1 * static_cast<double>(random.between(-13, 13)) : 1.0;
  return check_gradients<Concurrent>(problem, {.layout = all_layouts[random.between(0, 3)]});
}

TEST_CASE_TEMPLATE("gradients of random calls agree with the formula", Config, Turned<float, 64, 128>, Small,
                   Plain<float, 16, 4>, Odd, Turned<BFloat16, 64, 128>, Plain<BFloat16, 16, 33>, Plain<Half, 112, 7>,
                   Wide<BFloat16>) {
  Random random(2402);
  double worst = 0;
  for (int i = 0; i < 30; ++i) {
    CAPTURE(i);
    worst = std::max(worst, random_gradients<Config>(random));
  }
  MESSAGE("worst error: " << worst);
}

}  // namespace
}  // namespace jrt::test
