// SPDX-License-Identifier: Apache-2.0
// The kernels for sm_90a: when they are used, and what only they could get wrong. All other tests run on them too where
// they can be used, and once more with JRT_TEST_KERNELS=portable.
#include <jrt/cuda.cuh>

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/linear_problem.hpp"

namespace jrt::test {
namespace {

/// Whether there is anything to test here.
template <class C>
bool has_kernels() {
  if (!has_own_kernels<C>()) {
    MESSAGE("skipped: no kernels for sm_90a, or no device for them");
    return false;
  }
  if (tested_kernels() != CudaKernels::automatic) {
    MESSAGE("skipped: JRT_TEST_KERNELS leaves the kernels for sm_90a aside");
    return false;
  }
  return true;
}

template <class C>
bool uses_hopper(const PrefillArgs<C>& args, const Cuda& on) {
  const KernelKinds kinds = kernels_of(args, on);
  CHECK(kinds.any());
  return kinds.hopper;
}

template <class C>
struct Views {
  using E = typename C::Element;
  Placed<Concurrent, E> query, key, value, key_encoder, value_encoder, output;
  PrefillArgs<C> args;

  explicit Views(const Problem<C>& problem, Layout layout = Layout::bthd)
      : query(problem.query, layout),
        key(problem.key, layout),
        value(problem.value, layout),
        key_encoder(problem.key_encoder, layout),
        value_encoder(problem.value_encoder, layout),
        output(problem.output_shape(), layout) {
    args.query = query.view();
    args.key = key.view();
    args.value = value.view();
    args.key_encoder = key_encoder.view();
    args.value_encoder = value_encoder.view();
    args.output = output.view();
  }
};

TEST_CASE_TEMPLATE("used for aligned tensors of 16-bit elements with d = 16 or 8", C, Prefix<BFloat16, 16, 64>,
                   Prefix<Half, 16, 112>, Prefix<BFloat16, 8, 64>, Prefix<BFloat16, 16, 24>) {
  if (!has_kernels<C>()) {
    return;
  }
  const Problem<C> problem({.batch = 2, .tokens = 100, .prefix = 50});
  const Cuda on = Concurrent::execution();
  for (const Layout layout : {Layout::bthd, Layout::bhtd}) {
    CHECK(uses_hopper(Views<C>(problem, layout).args, on));
  }
  Views<C> views(problem);
  CHECK(uses_hopper(views.args, on));
  CHECK_FALSE(uses_hopper(views.args, Cuda{on.stream(), CudaKernels::portable}));
  auto args = views.args;
  args.query.data += 1;
  CHECK_FALSE(uses_hopper(args, on));
  args = views.args;
  args.value.token_stride += 4;
  CHECK_FALSE(uses_hopper(args, on));
  args = views.args;
  args.key_encoder.batch_stride = 0;  // broadcast
  CHECK_FALSE(uses_hopper(args, on));
  args = views.args;
  args.output.data += 1;
  CHECK_FALSE(uses_hopper(args, on));
  for (const Layout layout : {Layout::packed, Layout::spaced}) {
    CHECK_FALSE(uses_hopper(Views<C>(problem, layout).args, on));
  }
}

TEST_CASE("not used for other operators") {
  using detail::cuda::HopperLayout;
  CHECK(HopperLayout<Full<BFloat16, 16, 8>>::supported);
  CHECK_FALSE(HopperLayout<Prefix<float, 16, 64>>::supported);
  CHECK(HopperLayout<Prefix<BFloat16, 8, 64>>::supported);
  CHECK_FALSE(HopperLayout<Prefix<BFloat16, 12, 64>>::supported);
  CHECK_FALSE(HopperLayout<Prefix<BFloat16, 16, 20>>::supported);
  CHECK_FALSE(HopperLayout<PrefixElu<BFloat16, 16, 64>>::supported);
}

TEST_CASE("wide values have one block instead of slices") {
  using detail::cuda::TwinLayout;
  CHECK(TwinLayout<Prefix<BFloat16, 16, 72>>::supported);
  CHECK(TwinLayout<Full<BFloat16, 16, 112>>::supported);
  CHECK_FALSE(TwinLayout<Prefix<BFloat16, 16, 64>>::supported);
  CHECK_FALSE(TwinLayout<Prefix<BFloat16, 16, 120>>::supported);
  CHECK_FALSE(TwinLayout<Prefix<BFloat16, 8, 112>>::supported);
  CHECK_FALSE(TwinLayout<Prefix<Half, 16, 112>>::supported);
  CHECK_FALSE(TwinLayout<PrefixElu<BFloat16, 16, 112>>::supported);
}

/// Every width of the state that the matrix unit is used with, several slices, and one that is not full.
TEST_CASE_TEMPLATE("all widths of v", C, Prefix<BFloat16, 16, 8>, Causal<BFloat16, 16, 32>, Prefix<Half, 16, 40>,
                   Full<BFloat16, 16, 48>, Prefix<BFloat16, 16, 56>, Prefix<BFloat16, 16, 112>, Causal<Half, 16, 128>,
                   Prefix<BFloat16, 16, 136>, Causal<BFloat16, 16, 72>, Full<BFloat16, 16, 80>, Prefix<BFloat16, 16, 88>,
                   Causal<BFloat16, 16, 96>, Prefix<BFloat16, 16, 104>) {
  const Problem<C> problem(
      {.batch = 2, .tokens = 190, .prefix = C::Mask::reads_encoder ? 100 : 0, .heads = 2, .query_heads = 4});
  const auto initial = random_states<C>(2, 2, 3);
  const auto results = run_prefill<Concurrent>(problem, initial);
  CHECK(relative_error(results.output.values, reference_output(problem, initial).values) <=
        tolerance<typename C::Element>());
}

TEST_CASE_TEMPLATE("what lies behind a sequence's last token does not matter, whatever it is", C, Prefix<BFloat16, 16, 64>,
                   Causal<Half, 16, 112>, Full<BFloat16, 16, 32>, Prefix<BFloat16, 16, 112>) {
  using E = typename C::Element;
  for (const std::int64_t tokens : {1, 63, 65, 100}) {
    Problem<C> problem({.batch = 2, .tokens = 130, .prefix = C::Mask::reads_encoder ? tokens / 2 : 0});
    problem.sequences.seq_lens = {static_cast<std::int32_t>(tokens), static_cast<std::int32_t>(tokens)};
    problem.sequences.prefix_lens = {static_cast<std::int32_t>(problem.key_encoder.shape.tokens),
                                     static_cast<std::int32_t>(problem.key_encoder.shape.tokens / 2)};
    const auto expected = run_prefill<Concurrent>(problem);
    const auto spoil = [](Tensor<E>& tensor, std::int64_t b, std::int64_t first) {
      for (std::int64_t t = first; t < tensor.shape.tokens; ++t) {
        for (std::int64_t h = 0; h < tensor.shape.heads; ++h) {
          for (std::int64_t c = 0; c < tensor.shape.dim; ++c) {
            tensor.values[tensor.index(b, t, h, c)] = convert<E>(std::numeric_limits<float>::quiet_NaN());
          }
        }
      }
    };
    for (std::int64_t b = 0; b < 2; ++b) {
      for (Tensor<E>* tensor : {&problem.query, &problem.key, &problem.value}) {
        spoil(*tensor, b, tokens);
      }
      for (Tensor<E>* tensor : {&problem.key_encoder, &problem.value_encoder}) {
        spoil(*tensor, b, problem.sequences.prefix_lens[static_cast<std::size_t>(b)]);
      }
    }
    const auto results = run_prefill<Concurrent>(problem);
    CHECK(results.output == expected.output);
    CHECK(results.states == expected.states);
  }
}

TEST_CASE("half: sums, weights and products beyond 65504 are none of the user's business") {
  using C = Causal<Half, 16, 64>;
  Problem<C> problem({.batch = 1, .tokens = 3000, .heads = 1, .query_heads = 1});
  SUBCASE("large keys and values: sums of 1e9, weights of 1e5") {
    scale(problem.key, 100, 20);
    scale(problem.value, 50, 50);
    scale(problem.query, 1, 0);
  }
  SUBCASE("small values") {
    scale(problem.value, 1e-3F, 0);
  }
  SUBCASE("small keys, large queries") {
    scale(problem.key, 0.02F, 0);
    scale(problem.query, 60, 0);
  }
  SUBCASE("large keys, small queries") {
    scale(problem.key, 50, 0);
    scale(problem.query, 0.02F, 0);
  }
  SUBCASE("large queries on a large state") {
    scale(problem.key, 0.1F, 0);
    scale(problem.value, 1000, 10000);
    scale(problem.query, 100, 0);
  }
  const auto results = run_prefill<Concurrent>(problem);
  CHECK(relative_error(results.output.values, reference_output(problem).values) <= tolerance<Half>());
}

TEST_CASE_TEMPLATE("parts of one state in place: all of them read z before one writes it", C, Prefix<BFloat16, 16, 128>,
                   Prefix<BFloat16, 16, 112>) {
  using F = StateFormatOf<C>;
  const Problem<C> problem({.batch = 3, .tokens = 70, .prefix = 40, .heads = 40, .query_heads = 40});
  const auto initial = random_states<C>(3, 40, 9);
  const auto expected = run_prefill<Concurrent>(problem, initial);
  for (int repeat = 0; repeat < 20; ++repeat) {
    Views<C> views(problem);
    Concurrent::Array<float> states(initial);
    views.args.initial_state = {view_pool<F>(states.data(), 3, 40)};
    views.args.final_state = views.args.initial_state;
    JRT_REQUIRE_OK(prefill(views.args, Concurrent::execution()));
    CHECK(views.output.read() == expected.output);
    CHECK(used_numbers<C>(states.read()) == used_numbers<C>(expected.states));
  }
}

/// Without an initial state, blocks sum all that is before their segments; with one, segments start from partial states.
TEST_CASE_TEMPLATE("segments of short sequences, in either way", C, Prefix<BFloat16, 16, 64>, Causal<Half, 16, 112>,
                   Prefix<BFloat16, 8, 64>, Prefix<BFloat16, 16, 112>) {
  constexpr bool reads_encoder = C::Mask::reads_encoder;
  const StateNumbers<C> zeros(state_numbers<C>(1, 2));
  for (const std::int64_t tokens : {250, 1000, 1985}) {
    CAPTURE(tokens);
    const Problem<C> problem({.batch = 1, .tokens = tokens, .prefix = reads_encoder ? tokens / 2 : 0});
    const auto expected = reference_output(problem).values;
    const auto summed = run_prefill<Concurrent>(problem);
    const auto partial = run_prefill<Concurrent>(problem, zeros);
    CHECK(relative_error(summed.output.values, expected) <= tolerance<typename C::Element>());
    CHECK(relative_error(partial.output.values, expected) <= tolerance<typename C::Element>());
    CHECK(relative_error(used_numbers<C>(summed.states), used_numbers<C>(partial.states)) < 1e-5);
  }
  // Left pads, lengths that differ, grouped heads.
  Problem<C> ragged({.batch = 2, .tokens = 900, .prefix = reads_encoder ? 300 : 0, .heads = 1, .query_heads = 2}, 7);
  ragged.sequences.left_pads = {37, 0};
  ragged.sequences.seq_lens = {900, 651};
  const auto results = run_prefill<Concurrent>(ragged);
  CHECK(relative_error(results.output.values, reference_output(ragged).values) <= tolerance<typename C::Element>());
}

TEST_CASE_TEMPLATE("accumulating in pieces gives the state of a prefill", C, Prefix<BFloat16, 16, 64>,
                   SplitByLength<Prefix<Half, 16, 112>, 64>) {
  using F = StateFormatOf<C>;
  const Problem<C> problem({.batch = 2, .tokens = 500});
  const auto whole = run_prefill<Concurrent>(problem);
  Views<C> views(problem);
  Concurrent::Array<float> states(StateNumbers<C>(state_numbers<C>(2, 2)));
  const std::int64_t pieces[] = {0, 77, 141, 500};
  for (int i = 0; i < 3; ++i) {
    AccumulateArgs<C> args;
    args.key = views.args.key.slice_tokens(pieces[i], pieces[i + 1] - pieces[i]);
    args.value = views.args.value.slice_tokens(pieces[i], pieces[i + 1] - pieces[i]);
    args.final_state = {view_pool<F>(states.data(), 2, 2)};
    if (i > 0) {
      args.initial_state = args.final_state;
    }
    JRT_REQUIRE_OK(accumulate(args, Concurrent::execution()));
  }
  CHECK(relative_error(used_numbers<C>(states.read()), used_numbers<C>(whole.states)) < 1e-6);
}

}  // namespace
}  // namespace jrt::test
