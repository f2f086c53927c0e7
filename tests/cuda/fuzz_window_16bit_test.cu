// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <algorithm>
#include <jrt/kernels.hpp>
#include <vector>

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

/// The sequences of a problem again and again: so many caches that each block has several.
template <class Config>
WindowProblem<Config> repeated(const WindowProblem<Config>& problem, std::int64_t times) {
  WindowProblem<Config> many = problem;
  for (auto* tensor : {&many.query, &many.key, &many.value}) {
    const auto once = tensor->values;
    for (std::int64_t i = 1; i < times; ++i) {
      tensor->values.insert(tensor->values.end(), once.begin(), once.end());
    }
    tensor->shape.batch *= times;
  }
  return many;
}
template <class Config>
Caches<Config> repeated(const Caches<Config>& caches, std::int64_t times) {
  Caches<Config> many;
  for (std::int64_t i = 0; i < times; ++i) {
    many.insert(many.end(), caches.begin(), caches.end());
  }
  return many;
}
constexpr std::int64_t many_times = 400;

TEST_CASE_TEMPLATE("decode steps with one query per cache, of many caches, which fill up", Config, Plain<BFloat16, 64, 128>,
                   Turned<Half, 64, 128>, Plain<BFloat16, 112, 128>, Turned<BFloat16, 128, 40>, Narrow, Plain<Half, 16, 1>,
                   Turned<BFloat16, 32, 7>, Plain<BFloat16, 64, 0>) {
  using E = typename Config::Element;
  constexpr std::int64_t left = Config::left_window;
  for (const std::int64_t prompt : {std::int64_t{0}, std::max<std::int64_t>(0, left - 3), 2 * left + 3}) {
    CAPTURE(prompt);
    const WindowProblem<Config> problem({.batch = 3, .tokens = prompt + 7, .heads = 1, .query_heads = 1}, 7);
    auto caches = repeated<Config>(run_window<Concurrent>(problem.piece(0, prompt)).caches, many_times);
    const auto steps = step_window<Concurrent>(repeated(problem.piece(prompt, 7), many_times), 0, 7, caches);
    const auto expected = token_slice(reference_window(problem), prompt, 7).values;
    const std::vector<E> first(steps.values.begin(), steps.values.begin() + static_cast<std::ptrdiff_t>(expected.size()));
    CHECK(relative_error(first, expected) <= tolerance<E>());
    for (std::size_t at = 0; at < steps.values.size(); at += first.size()) {
      CHECK(std::equal(first.begin(), first.end(), steps.values.begin() + static_cast<std::ptrdiff_t>(at)));
    }
  }
}

TEST_CASE_TEMPLATE("many caches from slot to slot, some of them skipped: the same bits, and the source as it was", Config,
                   Plain<BFloat16, 64, 128>, Turned<Half, 112, 128>) {
  using E = typename Config::Element;
  using Format = StateFormatOf<Config>;
  constexpr std::int64_t count = 3 * many_times;
  for (const std::int64_t prompt : {0, 50, 128, 129, 200}) {
    CAPTURE(prompt);
    const WindowProblem<Config> few({.batch = 3, .tokens = prompt + 1, .heads = 1, .query_heads = 1});
    const auto problem = repeated(few.piece(prompt, 1), many_times);
    const auto begun = repeated<Config>(run_window<Concurrent>(few.piece(0, prompt)).caches, many_times);
    auto in_place = begun;
    auto expected = step_window<Concurrent>(problem, 0, 1, in_place);
    // Sequence b has the cache of sequence b + 3, which is the same.
    std::vector<std::int32_t> slots(count);
    for (std::int64_t b = 0; b < count; ++b) {
      slots[static_cast<std::size_t>(b)] = static_cast<std::int32_t>((b + 3) % count);
    }
    slots[7] = skip_slot;
    Concurrent::Array<std::int32_t> placed_slots(slots);
    Concurrent::Array<E> source(begun);
    Concurrent::Array<E> destination(poisoned_caches<Config>(count, 1));
    PlacedWindow<Concurrent, Config> placed(problem);
    auto args = placed.template args<DecodeArgs<Config>>();
    args.source = {view_pool<Format>(source.data(), count, 1), placed_slots.data()};
    args.destination = {view_pool<Format>(destination.data(), count, 1)};
    JRT_REQUIRE_OK(decode_step(args, Concurrent::execution()));
    const auto output = placed.output.read();
    const auto written = destination.read();
    const auto each = static_cast<std::ptrdiff_t>(Config::value_dim);
    for (std::int64_t b = 0; b < count; ++b) {
      if (b == 7) {
        CHECK(std::all_of(output.values.begin() + 7 * each, output.values.begin() + 8 * each,
                          [](E y) { return convert<float>(y) == 0; }));
      } else {
        CHECK(std::equal(output.values.begin() + b * each, output.values.begin() + (b + 1) * each,
                         expected.values.begin() + b * each));
        CHECK(used_bytes<Config>(cache_of<Config>(written, b, 1)) == used_bytes<Config>(cache_of<Config>(in_place, b, 1)));
      }
    }
    CHECK(used_bytes<Config>(source.read()) == used_bytes<Config>(begun));
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
