// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <jrt/kernels.hpp>

#include "support/backend.hpp"
#include "support/fuzz_window.hpp"

namespace jrt::test {
namespace {

/// Values of another dimension than keys.
struct Wide : Turned<BFloat16, 32, 15> {
  static constexpr int value_dim = 48;
};

TEST_CASE_TEMPLATE("random calls of window attention agree with the formula: bfloat16 and half", Config,
                   Turned<BFloat16, 64, 128>, Plain<Half, 64, 128>, Turned<Half, 16, 4>, Plain<BFloat16, 16, 0>,
                   Plain<Half, 112, 7>, Turned<BFloat16, 112, 64>, Turned<Half, 128, 128>, Turned<BFloat16, 48, 200>, Wide,
                   Plain<BFloat16, 24, 4>, Plain<BFloat16, 64, 93>) {
  MESSAGE("worst error: " << fuzz_mixer<Concurrent, FuzzedWindow, Config>(8668, 30, 250));
}

/// Values of another dimension than keys.
struct Narrow : Turned<Half, 112, 40> {
  static constexpr int value_dim = 48;
};

TEST_CASE_TEMPLATE("decode steps with one query per cache: caches that fill up, and more of them than blocks", Config,
                   Plain<BFloat16, 64, 128>, Turned<Half, 64, 128>, Plain<BFloat16, 112, 128>, Turned<BFloat16, 128, 200>,
                   Narrow, Plain<Half, 16, 1>, Turned<BFloat16, 32, 7>, Plain<BFloat16, 64, 0>) {
  using E = typename Config::Element;
  const auto steps_agree = [](const WindowShape& shape, std::int64_t prompt) {
    const WindowProblem<Config> problem(shape, 7);
    auto begun = run_window<Concurrent>(problem.piece(0, prompt));
    const auto steps = step_window<Concurrent>(problem, prompt, shape.tokens - prompt, begun.caches);
    CHECK(relative_error(joined_tokens(begun.output, steps).values, reference_window(problem).values) <= tolerance<E>());
  };
  steps_agree({.batch = 2, .tokens = Config::left_window + 20, .query_heads = 2}, 0);
  steps_agree({.batch = 1, .tokens = 2 * Config::left_window + 12, .query_heads = 2}, 2 * Config::left_window + 3);
  steps_agree({.batch = 600, .tokens = 5, .heads = 1, .query_heads = 1}, 3);
}

TEST_CASE_TEMPLATE("a decode step from one slot to another: the same bits, and the source as it was", Config,
                   Plain<BFloat16, 64, 128>, Turned<Half, 112, 128>) {
  using E = typename Config::Element;
  using Format = StateFormatOf<Config>;
  for (const std::int64_t prompt : {0, 50, 128, 129, 200}) {
    CAPTURE(prompt);
    const WindowProblem<Config> problem({.batch = 3, .tokens = prompt + 1, .query_heads = 2});
    const auto begun = run_window<Concurrent>(problem.piece(0, prompt));
    auto in_place = begun.caches;
    const auto expected = step_window<Concurrent>(problem, prompt, 1, in_place);
    Concurrent::Array<E> source(begun.caches);
    Concurrent::Array<E> destination(poisoned_caches<Config>(3, 2));
    PlacedWindow<Concurrent, Config> placed(problem.piece(prompt, 1));
    auto args = placed.template args<DecodeArgs<Config>>();
    args.source = {view_pool<Format>(source.data(), 3, 2)};
    args.destination = {view_pool<Format>(destination.data(), 3, 2)};
    JRT_REQUIRE_OK(decode_step(args, Concurrent::execution()));
    CHECK(placed.output.read() == expected);
    CHECK(used_bytes<Config>(destination.read()) == used_bytes<Config>(in_place));
    CHECK(used_bytes<Config>(source.read()) == used_bytes<Config>(begun.caches));
  }
}

template <class Config>
KernelKinds kernels_for(std::int64_t tokens, std::int64_t offset = 0) {
  using E = typename Config::Element;
  const WindowProblem<Config> problem({.tokens = tokens});
  Placed<Concurrent, E> query(problem.query, Layout::bthd);
  Placed<Concurrent, E> key(problem.key, Layout::bthd);
  Placed<Concurrent, E> output(problem.output_shape(), Layout::bthd);
  PrefillArgs<Config> args;
  args.query = query.view();
  args.key = args.value = key.view();
  args.query.data += offset;
  args.output = output.view();
  return kernels_of(args, Concurrent::execution());
}

TEST_CASE("the kernels for a window are those for its tokens, tensors, type and device") {
  constexpr KernelKinds tiles{.matrix_units = true};
  constexpr KernelKinds rows{.ordinary_units = true};
  const bool hopper = detail::cuda::HopperWindow<Plain<Half, 64, 128>>::available(Concurrent::execution());
  CHECK(kernels_for<Plain<Half, 64, 128>>(64) == (hopper ? KernelKinds{.hopper = true} : tiles));
  CHECK(kernels_for<Plain<Half, 64, 128>>(63) == tiles);
  CHECK(kernels_for<Plain<Half, 64, 128>>(1) == rows);
  CHECK(kernels_for<Plain<Half, 64, 128>>(64, 1) == rows);
  CHECK(kernels_for<Turned<BFloat16, 64, 128>>(100) == (hopper ? KernelKinds{.hopper = true} : tiles));
  CHECK(kernels_for<Plain<BFloat16, 24, 4>>(100) == rows);
}

}  // namespace
}  // namespace jrt::test
