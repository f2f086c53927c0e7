// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <jrt/backward.hpp>
#include <jrt/mixer/gated_convolution.hpp>
#include <string>
#include <type_traits>
#include <vector>

#include "support/backend.hpp"
#include "support/convolution_gradients.hpp"
#include "support/convolution_problem.hpp"
#include "support/fuzz.hpp"

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
  template <class T>
  JRT_DETAIL_HD static T derivative(T sum) {
    const T root = T(1) / (T(1) + (sum < 0 ? -sum : sum));
    return root * root;
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

TEST_CASE_TEMPLATE("gradients of every element type, width, number of channels and length agree with the formula", Config,
                   GatedConvolution<float, 2>, GatedConvolution<float, 3>, GatedConvolution<float, 8>,
                   GatedConvolution<double, 3>, GatedConvolution<double, 4>, GatedConvolution<Half, 3>,
                   GatedConvolution<Half, 8>, GatedConvolution<BFloat16, 2>, GatedConvolution<BFloat16, 3>,
                   GatedConvolution<BFloat16, 4>, GatedConvolution<BFloat16, 8>,
                   WithoutActivation<GatedConvolution<float, 3>>, WithSoftsign<GatedConvolution<double, 3>>,
                   WithSoftsign<GatedConvolution<BFloat16, 3>>) {
  unsigned seed = 1;
  for (const std::int64_t channels : {1, 7, 64, 97}) {
    for (const std::int64_t tokens : {0, 1, 2, 3, 7, 8, 63, 64, 65, 255, 257, 1000}) {
      CAPTURE(channels);
      CAPTURE(tokens);
      ++seed;
      const ConvolutionGradientProblem<Config> problem(
          {.tokens = tokens, .channels = channels, .has_gate = seed % 3 != 0, .has_bias = seed % 2 == 0}, seed,
          seed % 4 < 2);
      check_gradients<Config>(run_backward<Simple>(problem, {.layout = all_layouts[seed % 4], .halves = seed % 5 < 3}),
                              expected_gradients(problem));
    }
  }
}

TEST_CASE_TEMPLATE("gradients with weights of another type", Config, WithWeights<BFloat16, float>,
                   WithWeights<float, BFloat16>, WithWeights<float, double>) {
  const ConvolutionGradientProblem<Config> problem({.tokens = 33, .channels = 40});
  using Coarser = std::conditional_t<sizeof(typename Config::Weight) == 2, BFloat16, typename Config::Element>;
  check_gradients<Config>(run_backward<Simple>(problem), expected_gradients(problem), gradient_tolerance<Coarser>());
}

TEST_CASE_TEMPLATE("blocks and segments meet without a seam, and gradients have the same bits in any layout and each time",
                   Config, GatedConvolution<float, 4>, GatedConvolution<BFloat16, 3>, GatedConvolution<double, 8>) {
  const ConvolutionGradientProblem<Config> problem({.tokens = 700, .channels = 1096});
  const auto gradients = run_backward<Concurrent>(problem, {.halves = true});
  check_gradients<Config>(gradients, expected_gradients(problem));
  CHECK(run_backward<Concurrent>(problem, {.halves = true}) == gradients);
  CHECK(run_backward<Simple>(problem) == gradients);
  for (const Layout layout : all_layouts) {
    CHECK(run_backward<Concurrent>(problem, {.layout = layout, .in_place = true}) == gradients);
  }
}

TEST_CASE_TEMPLATE("gradients of large tensors, which pass the caches", Config, GatedConvolution<float, 3>) {
  const ConvolutionGradientProblem<Config> problem({.batch = 1, .tokens = 2100, .channels = 2048});
  const auto gradients = run_backward<Concurrent>(problem);
  check_gradients<Config>(gradients, expected_gradients(problem));
}

TEST_CASE_TEMPLATE("gradients of saturated outputs are those of the gate or of nothing", Config, GatedConvolution<float, 3>,
                   GatedConvolution<double, 3>, GatedConvolution<BFloat16, 3>) {
  ConvolutionGradientProblem<Config> problem({.tokens = 40, .channels = 20});
  for (auto& number : problem.forward.input.values) {
    number = convert<typename Config::Element>(convert<double>(number) * 300);
  }
  check_gradients<Config>(run_backward<Simple>(problem), expected_gradients(problem));
}

/// The part of sequence `b` alone.
template <class Config>
ConvolutionGradientProblem<Config> sequence_alone(const ConvolutionGradientProblem<Config>& packed, std::size_t b) {
  const auto& lists = packed.forward.sequences;
  const std::int64_t first = lists.cu_seqlens[b];
  const std::int64_t tokens = lists.cu_seqlens[b + 1] - first;
  auto alone = packed;
  alone.forward = token_slice(packed.forward, first, tokens);
  alone.forward.sequences = {};
  alone.forward.sequences.left_pads = {lists.left_pads[b]};
  alone.output_gradient = token_slice(packed.output_gradient, first, tokens);
  const auto numbers = static_cast<std::ptrdiff_t>(alone.state_numbers());
  const auto part = [&](auto& state) {
    const auto begin = state.begin() + static_cast<std::ptrdiff_t>(b) * numbers;
    state = {begin, begin + numbers};
  };
  part(alone.initial);
  part(alone.final_gradient);
  return alone;
}

TEST_CASE_TEMPLATE("gradients of packed sequences: each as if it were alone, weights' summed", Backend, JRT_TEST_BACKENDS) {
  using Config = GatedConvolution<float, 3>;
  constexpr std::int64_t channels = 97;
  SequenceLists lists;
  lists.count = 7;
  lists.cu_seqlens = {0, 0, 1, 150, 150, 152, 409, 711};
  lists.left_pads = {0, 0, 70, 0, 1, 3, 2};
  const ConvolutionGradientProblem<Config> packed({.batch = 1, .tokens = 711, .channels = channels}, 1, true, lists);
  const auto together = run_backward<Backend>(packed, {.layout = Layout::spaced});
  check_gradients<Config>(together, expected_gradients(packed));
  std::vector<double> sums(together.weight.size());
  for (std::size_t b = 0; b < 7; ++b) {
    CAPTURE(b);
    const auto one = sequence_alone(packed, b);
    const auto alone = run_backward<Backend>(one);
    const std::int64_t first = lists.cu_seqlens[b];
    const std::int64_t tokens = lists.cu_seqlens[b + 1] - first;
    CHECK(alone.input == token_slice(together.input, first, tokens));
    CHECK(alone.gate == token_slice(together.gate, first, tokens));
    const auto numbers = static_cast<std::ptrdiff_t>(one.state_numbers());
    const auto begin = together.initial.begin() + static_cast<std::ptrdiff_t>(b) * numbers;
    CHECK(alone.initial == std::vector<float>(begin, begin + numbers));
    for (std::size_t i = 0; i < sums.size(); ++i) {
      sums[i] += static_cast<double>(alone.weight[i]);
    }
  }
  CHECK(relative_error(together.weight, sums) <= gradient_tolerance<float>());
}

TEST_CASE_TEMPLATE("padded positions have gradient 0, on either side", Backend, JRT_TEST_BACKENDS) {
  using Config = GatedConvolution<BFloat16, 4>;
  SequenceLists lists;
  lists.left_pads = {0, 3, 70, 139, 20};
  lists.seq_lens = {140, 100, 71, 140, 20};
  ConvolutionGradientProblem<Config> problem({.batch = 5, .tokens = 140, .channels = 24}, 1, true, lists);
  const auto expected = expected_gradients(problem);
  // What is there does not matter.
  for (std::size_t b = 0; b < 5; ++b) {
    for (std::int64_t t = 0; t < 140; ++t) {
      if (t < lists.left_pads[b] || t >= lists.seq_lens[b]) {
        for (auto* tensor : {&problem.forward.input, &problem.forward.gate, &problem.output_gradient}) {
          std::fill_n(&tensor->at(static_cast<std::int64_t>(b), t, 0, 0), 24, poison<BFloat16>());
        }
      }
    }
  }
  const auto gradients = run_backward<Backend>(problem);
  check_gradients<Config>(gradients, expected);
  for (std::size_t i = 0; i < expected.input.values.size(); ++i) {
    if (expected.gate.values[i] == 0) {  // padding: no token has an exact 0
      REQUIRE(convert<float>(gradients.input.values[i]) == 0);
      REQUIRE(convert<float>(gradients.gate.values[i]) == 0);
    }
  }
}

TEST_CASE_TEMPLATE("no gradient reaches an initial state that is ignored", Backend, JRT_TEST_BACKENDS) {
  using Config = GatedConvolution<float, 3>;
  for (const std::int64_t tokens : {0, 1, 20}) {
    CAPTURE(tokens);
    ConvolutionGradientProblem<Config> problem({.batch = 3, .tokens = tokens, .channels = 10});
    auto cleared = problem;
    problem.has_initial_state = {1, 0, 1};
    std::fill_n(problem.initial.begin() + 20, 20, poison<float>());
    std::fill_n(cleared.initial.begin() + 20, 20, 0.0F);
    const auto gradients = run_backward<Backend>(problem);
    check_gradients<Config>(gradients, expected_gradients(problem));
    auto expected = run_backward<Backend>(cleared);
    std::fill_n(expected.initial.begin() + 20, 20, 0.0F);
    CHECK(gradients == expected);
  }
}

TEST_CASE_TEMPLATE("no tokens: the final state's gradient is the initial one's", Backend, JRT_TEST_BACKENDS) {
  using Config = GatedConvolution<float, 4>;
  const ConvolutionGradientProblem<Config> problem({.batch = 2, .tokens = 0, .channels = 9});
  for (const bool in_place : {false, true}) {
    const auto gradients = run_backward<Backend>(problem, {.in_place = in_place});
    CHECK(gradients.initial == problem.final_gradient);
    CHECK(gradients.weight == std::vector<float>(9 * 4, 0.0F));
    CHECK(gradients.bias == std::vector<float>(9, 0.0F));
  }
}

TEST_CASE_TEMPLATE("gradients in slots: apart, in any order, skipped, with gaps between slots", Backend,
                   JRT_TEST_BACKENDS) {
  using Config = GatedConvolution<float, 3>;
  using Args = BackwardArgs<Config>;
  constexpr std::int64_t channels = 12;
  constexpr std::ptrdiff_t numbers = channels * 2;
  const ConvolutionGradientProblem<Config> problem({.batch = 4, .tokens = 70, .channels = channels});
  const auto expected = run_backward<Backend>(problem);
  for (const std::ptrdiff_t stride : {numbers, numbers + 4, numbers + 3}) {
    CAPTURE(stride);
    // Sequence 1 is skipped in the initial state's gradient, 2 in the final one's; 0 and 3 read slots 4, 3 and write 0, 3.
    std::vector<float> pool(static_cast<std::size_t>(6 * stride), poison<float>());
    std::copy_n(problem.final_gradient.begin(), numbers, pool.begin() + 4 * stride);
    std::copy_n(problem.final_gradient.begin() + numbers, numbers, pool.begin() + stride);
    std::copy_n(problem.final_gradient.begin() + 3 * numbers, numbers, pool.begin() + 3 * stride);
    auto wanted = pool;
    std::copy_n(expected.initial.begin(), numbers, wanted.begin());
    std::copy_n(expected.initial.begin() + 3 * numbers, numbers, wanted.begin() + 3 * stride);
    typename Backend::template Array<std::int32_t> final_slots({4, 1, skip_slot, 3});
    typename Backend::template Array<std::int32_t> initial_slots({0, skip_slot, 2, 3});
    typename Backend::template Array<float> memory(pool);
    typename Backend::template Array<float> initial(problem.initial);
    typename Backend::template Array<float> weight_gradient(std::vector<float>(channels * 3, poison<float>()));
    const StatePoolView<typename Args::GradientFormat> view{memory.data(), 6, channels, stride};
    PlacedConvolution<Backend, Config> placed(problem.forward, Layout::bthd);
    Placed<Backend, float> output_gradient(problem.output_gradient, Layout::bthd);
    Placed<Backend, float> input_gradient(problem.output_gradient.shape, Layout::bthd);
    Placed<Backend, float> gate_gradient(problem.output_gradient.shape, Layout::bthd);
    auto args = placed.template args<Args>();
    args.initial_state = {view_pool<typename Args::Format>(initial.data(), 4, channels)};
    args.output_gradient = output_gradient.view();
    args.final_state_gradient = {view, final_slots.data()};
    args.initial_state_gradient = {view, initial_slots.data()};
    args.input_gradient = input_gradient.view();
    args.gate_gradient = gate_gradient.view();
    args.weight_gradient = weight_gradient.data();
    JRT_REQUIRE_OK(backward(args, Backend::execution()));
    CHECK(std::memcmp(memory.read().data(), wanted.data(), wanted.size() * sizeof(float)) == 0);
    const auto inputs = input_gradient.read();
    const auto gates = gate_gradient.read();
    for (const std::int64_t b : {0, 3}) {
      CHECK(batch_slice(inputs, b) == batch_slice(expected.input, b));
      CHECK(batch_slice(gates, b) == batch_slice(expected.gate, b));
    }
    for (const std::int64_t b : {1, 2}) {
      CHECK(batch_slice(inputs, b).values == std::vector<float>(70 * channels, 0.0F));
      CHECK(batch_slice(gates, b).values == std::vector<float>(70 * channels, 0.0F));
    }
    // Weights have the gradient of sequences 0 and 3.
    auto others = problem;
    for (const std::int64_t b : {1, 2}) {
      std::fill_n(&others.output_gradient.at(b, 0, 0, 0), 70 * channels, 0.0F);
    }
    CHECK(relative_error(weight_gradient.read(), expected_gradients(others).weight) <= gradient_tolerance<float>());
  }
}

TEST_CASE_TEMPLATE("gradients of pieces handed on are those of the whole", Config, GatedConvolution<double, 3>,
                   GatedConvolution<double, 8>, GatedConvolution<float, 4>) {
  using E = typename Config::Element;
  constexpr std::int64_t tokens = 300;
  const ConvolutionGradientProblem<Config> whole({.tokens = tokens, .channels = 24});
  const auto expected = run_backward<Simple>(whole);
  for (const std::int64_t cut : {0, 1, 2, 5, 64, 299, 300}) {
    CAPTURE(cut);
    const auto piece = [&](std::int64_t first, std::int64_t count) {
      auto part = whole;
      part.forward = token_slice(whole.forward, first, count);
      part.output_gradient = token_slice(whole.output_gradient, first, count);
      return part;
    };
    auto first = piece(0, cut);
    auto second = piece(cut, tokens - cut);
    second.initial = run_convolution<Simple>(first.forward, first.initial).states;
    const auto later = run_backward<Simple>(second);
    first.final_gradient = later.initial;
    const auto earlier = run_backward<Simple>(first);
    const auto close = [](const auto& a, const auto& b) { return relative_error(a, b) <= gradient_tolerance<E>(); };
    CHECK(close(joined_tokens(earlier.input, later.input).values, expected.input.values));
    CHECK(joined_tokens(earlier.gate, later.gate) == expected.gate);
    CHECK(close(earlier.initial, expected.initial));
    auto sums = earlier.weight;
    for (std::size_t i = 0; i < sums.size(); ++i) {
      sums[i] += later.weight[i];
    }
    CHECK(close(sums, expected.weight));
  }
}

TEST_CASE_TEMPLATE("gradients are linear in those of the outputs", Backend, JRT_TEST_BACKENDS) {
  using Config = GatedConvolution<double, 3>;
  const ConvolutionGradientProblem<Config> first({.tokens = 80, .channels = 30});
  auto second = first;
  second.output_gradient = random_tensor<double>(first.output_gradient.shape, 77);
  second.final_gradient = random_tensor<double>({1, 2, 30, 2}, 78).values;
  auto both = first;
  const auto add = [](auto& to, const auto& from) {
    for (std::size_t i = 0; i < to.size(); ++i) {
      to[i] += -3 * from[i];
    }
  };
  add(both.output_gradient.values, second.output_gradient.values);
  add(both.final_gradient, second.final_gradient);
  auto sum = run_backward<Backend>(first);
  const auto other = run_backward<Backend>(second);
  const auto together = run_backward<Backend>(both);
  add(sum.input.values, other.input.values);
  add(sum.gate.values, other.gate.values);
  add(sum.weight, other.weight);
  add(sum.bias, other.bias);
  add(sum.initial, other.initial);
  CHECK(relative_error(together.input.values, sum.input.values) <= 1e-13);
  CHECK(relative_error(together.gate.values, sum.gate.values) <= 1e-13);
  CHECK(relative_error(together.weight, sum.weight) <= 1e-12);
  CHECK(relative_error(together.bias, sum.bias) <= 1e-12);
  CHECK(relative_error(together.initial, sum.initial) <= 1e-13);
}

TEST_CASE_TEMPLATE("gradients that are not wanted leave the others as they are, to the bit", Backend, JRT_TEST_BACKENDS) {
  using Config = GatedConvolution<BFloat16, 3>;
  const ConvolutionGradientProblem<Config> problem({.tokens = 300, .channels = 40});
  const auto all = run_backward<Backend>(problem);
  for (unsigned wanted = 0; wanted < 32; ++wanted) {
    CAPTURE(wanted);
    const GradientOptions options{.input = (wanted & 1) != 0,
                                  .gate = (wanted & 2) != 0,
                                  .weight = (wanted & 4) != 0,
                                  .bias = (wanted & 8) != 0,
                                  .initial = (wanted & 16) != 0};
    auto expected = all;
    expected.input = options.input ? expected.input : Tensor<BFloat16>{};
    expected.gate = options.gate ? expected.gate : Tensor<BFloat16>{};
    expected.weight.resize(options.weight ? expected.weight.size() : 0);
    expected.bias.resize(options.bias ? expected.bias.size() : 0);
    expected.initial.resize(options.initial ? expected.initial.size() : 0);
    CHECK(run_backward<Backend>(problem, options) == expected);
  }
}

/// Differences from the oracle and norms, summed over all cases: the gradients of a case of one token may nearly vanish.
class GradientErrorSum {
 public:
  template <class Config>
  void add(const ConvolutionGradientsOf<Config>& gradients, const ExpectedGradients& expected) {
    add(gradients.input.values, expected.input.values);
    add(gradients.gate.values, expected.gate.values);
    add(gradients.weight, expected.weight);
    add(gradients.bias, expected.bias);
    add(gradients.initial, expected.initial);
  }
  [[nodiscard]] double relative() const { return std::sqrt(difference_ / norm_); }

 private:
  template <class Number>
  void add(const std::vector<Number>& numbers, const std::vector<double>& expected) {
    REQUIRE(numbers.size() == expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const double difference = convert<double>(numbers[i]) - expected[i];
      difference_ += difference * difference;
      norm_ += expected[i] * expected[i];
    }
  }

  double difference_ = 0;
  double norm_ = 0;
};

template <class Config>
void fuzz_gradients(unsigned seed, int cases) {
  constexpr double tolerance = gradient_tolerance<typename Config::Element>();
  Random random(seed);
  GradientErrorSum sum;
  const auto as_int = [](std::int64_t number) { return static_cast<std::int32_t>(number); };
  for (int i = 0; i < cases; ++i) {
    CAPTURE(i);
    SequenceLists lists;
    ConvolutionShape shape{
        .channels = random.between(1, 70), .has_gate = random.chance(0.7), .has_bias = random.chance(0.5)};
    if (random.chance(0.4)) {
      lists.count = random.between(1, 6);
      lists.cu_seqlens = {0};
      for (std::int64_t b = 0; b < lists.count; ++b) {
        const std::int64_t tokens = random_length(random, 150);
        lists.cu_seqlens.push_back(lists.cu_seqlens.back() + as_int(tokens));
        lists.left_pads.push_back(random.chance(0.3) ? as_int(random.between(0, tokens)) : 0);
      }
      shape.batch = 1;
      shape.tokens = lists.cu_seqlens.back();
    } else {
      shape.batch = random.between(1, 4);
      shape.tokens = random.chance(0.2) ? random.between(0, 9) : random_length(random, 600);
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
    ConvolutionGradientProblem<Config> problem(shape, static_cast<unsigned>(random.between(1, 1 << 30)), true, lists);
    if (random.chance(0.4)) {
      problem.initial.clear();
    } else if (random.chance(0.3)) {
      for (std::int64_t b = 0; b < problem.sequences(); ++b) {
        problem.has_initial_state.push_back(random.chance(0.5) ? 1 : 0);
      }
    }
    if (random.chance(0.4)) {
      problem.final_gradient.clear();
    }
    const auto gradients =
        run_backward<Concurrent>(problem, {.layout = all_layouts[random.between(0, 3)],
                                           .halves = random.chance(0.5),
                                           .in_place = !problem.final_gradient.empty() && random.chance(0.5)});
    const auto expected = expected_gradients(problem);
    REQUIRE(gradient_errors(gradients, expected).worst() <= 50 * tolerance);
    sum.add<Config>(gradients, expected);
  }
  CHECK(sum.relative() <= tolerance);
}

TEST_CASE("gradients of random calls") {
  fuzz_gradients<GatedConvolution<float, 3>>(1, 70);
  fuzz_gradients<GatedConvolution<double, 8>>(2, 30);
  fuzz_gradients<GatedConvolution<BFloat16, 3>>(3, 70);
  fuzz_gradients<GatedConvolution<Half, 4>>(4, 40);
}

}  // namespace
}  // namespace jrt::test
