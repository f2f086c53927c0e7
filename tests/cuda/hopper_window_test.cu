// SPDX-License-Identifier: Apache-2.0
// The prefill of windows on sm_90a: rotation of keys and queries in shared memory, and the softmax carry-in of the hybrid
// mixer. All other tests of windows run on it too where it is used.
#include <jrt/cuda.cuh>

#include <doctest/doctest.h>

#include <cstring>
#include <vector>

#include "support/backend.hpp"
#include "support/hybrid_problem.hpp"
#include "support/window_problem.hpp"

namespace jrt::test {
namespace {

/// Whether there is anything to test here.
template <class Config>
bool has_kernel() {
  CHECK(detail::cuda::HopperWindowLayout<Config>::supported);
  if (!detail::cuda::HopperWindow<Config>::available(Concurrent::execution())) {
    MESSAGE("skipped: no kernels for sm_90a, no device for them, or JRT_TEST_KERNELS leaves them aside");
    return false;
  }
  return true;
}

/// Values of another dimension than keys.
template <class E, int d, int dv, int left>
struct Uneven : Turned<E, d, left> {
  static constexpr int value_dim = dv;
};

template <class Config>
void check_against_reference(const WindowProblem<Config>& problem) {
  const auto output = run_window<Concurrent>(problem).output;
  CHECK(relative_error(output.values, reference_window(problem).values) <= tolerance<typename Config::Element>());
}

/// Dense, packed and ragged sequences; some take more tiles than the ring has.
template <class Config>
void check_lengths() {
  if (!has_kernel<Config>()) {
    return;
  }
  for (const std::int64_t tokens : {64, 65, 200, 1000}) {
    CAPTURE(tokens);
    check_against_reference(WindowProblem<Config>({.batch = 1, .tokens = tokens, .heads = 1, .query_heads = 2}));
  }
  WindowProblem<Config> packed({.batch = 1, .tokens = 700, .heads = 1, .query_heads = 1}, 5);
  packed.sequences.count = 6;
  packed.sequences.cu_seqlens = {0, 130, 130, 131, 400, 463, 700};
  check_against_reference(packed);
  WindowProblem<Config> ragged({.batch = 3, .tokens = 300, .heads = 1, .query_heads = 1}, 9);
  ragged.sequences.left_pads = {0, 37, 300};
  ragged.sequences.seq_lens = {300, 250, 300};
  check_against_reference(ragged);
}

TEST_CASE_TEMPLATE("rotated windows of all dimensions and lengths", Config, Turned<BFloat16, 64, 128>,
                   Turned<Half, 64, 128>, Turned<BFloat16, 16, 128>, Turned<Half, 32, 64>, Turned<BFloat16, 48, 100>,
                   Turned<BFloat16, 64, 448>, Turned<BFloat16, 80, 128>, Turned<Half, 96, 63>, Turned<BFloat16, 112, 128>,
                   Turned<BFloat16, 128, 128>, Turned<Half, 128, 1>, Turned<BFloat16, 64, 0>, Uneven<BFloat16, 16, 64, 128>,
                   Uneven<BFloat16, 64, 128, 128>, Uneven<Half, 128, 16, 100>) {
  check_lengths<Config>();
}

TEST_CASE_TEMPLATE("windows without rotation", Config, Plain<BFloat16, 64, 128>, Plain<Half, 112, 64>,
                   Plain<BFloat16, 64, 448>) {
  check_lengths<Config>();
}

TEST_CASE("long runs of tiles, many heads") {
  using Config = Turned<BFloat16, 64, 128>;
  if (has_kernel<Config>()) {
    check_against_reference(WindowProblem<Config>({.batch = 1, .tokens = 5000, .heads = 4, .query_heads = 4}));
    check_against_reference(WindowProblem<Config>({.batch = 40, .tokens = 130, .heads = 2, .query_heads = 6}));
  }
}

TEST_CASE_TEMPLATE("keys are rotated to the bits that the cache gets: pieces of whole tiles equal the whole", Config,
                   Turned<BFloat16, 64, 128>, Turned<Half, 48, 100>, Turned<BFloat16, 112, 128>) {
  if (!has_kernel<Config>()) {
    return;
  }
  const WindowProblem<Config> problem({.batch = 2, .tokens = 640});
  const auto whole = run_window<Concurrent>(problem);
  for (const std::int64_t cut : {64, 192, 448}) {
    CAPTURE(cut);
    const auto begun = run_window<Concurrent>(problem.piece(0, cut));
    const auto rest = run_window<Concurrent>(problem.piece(cut, 640 - cut), begun.caches);
    CHECK(joined_tokens(begun.output, rest.output) == whole.output);
    CHECK(used_bytes<Config>(rest.caches) == used_bytes<Config>(whole.caches));
  }
}

TEST_CASE_TEMPLATE("positions of a million and more", Config, Turned<BFloat16, 64, 128>, Turned<Half, 128, 128>) {
  using E = typename Config::Element;
  using Double = InDouble<Config>;
  if (!has_kernel<Config>()) {
    return;
  }
  const WindowProblem<Config> problem({.batch = 2, .tokens = 300, .heads = 1, .query_heads = 2});
  for (const std::int64_t before : {std::int64_t{1'000'003}, std::int64_t{1} << 33}) {
    CAPTURE(before);
    Caches<Config> caches(random_tensor<E>({1, 1, 1, static_cast<std::int64_t>(cache_elements<Config>(2, 1))}, 3).values);
    Caches<Double> expected;
    for (std::int64_t slot = 0; slot < 2; ++slot) {
      E* const cache = caches.data() + slot * StateFormatOf<Config>::head_elements;
      std::vector<double> numbers(static_cast<std::size_t>(StateFormatOf<Double>::head_elements));
      for (std::int64_t i = 0; i < StateFormatOf<Config>::ring_elements; ++i) {
        numbers[static_cast<std::size_t>(i)] = convert<double>(cache[i]);
      }
      std::memcpy(static_cast<void*>(cache + StateFormatOf<Config>::count_offset), &before, sizeof before);
      std::memcpy(numbers.data() + StateFormatOf<Double>::count_offset, &before, sizeof before);
      expected.insert(expected.end(), numbers.begin(), numbers.end());
    }
    const auto results = run_window<Concurrent>(problem, caches);
    CHECK(relative_error(results.output.values, reference_window(problem, expected).values) <= tolerance<E>());
  }
}

template <class Config>
using RingOf = typename detail::HybridParts<Config>::Ring;

TEST_CASE_TEMPLATE("the window of a hybrid mixer, from the sums before", Config, Mixed<BFloat16, 128, 16, 64>,
                   Mixed<Half, 128, 16, 64>, MixedCausal<BFloat16, 128, 16, 128>, Mixed<BFloat16, 128, 16, 112>,
                   MixedCausal<Half, 64, 16, 16>, Mixed<BFloat16, 200, 16, 64>, Mixed<BFloat16, 7, 32, 48>) {
  using E = typename Config::Element;
  if (!has_kernel<RingOf<Config>>()) {
    return;
  }
  constexpr bool reads_encoder = Config::Linear::Mask::reads_encoder;
  const auto check = [](const HybridProblem<Config>& problem) {
    const auto output = run_hybrid<Concurrent>(problem).output;
    CHECK(relative_error(output.values, reference_hybrid(problem).values) <= tolerance<E>());
  };
  for (const std::int64_t tokens : {64, 129, 200, 900}) {
    CAPTURE(tokens);
    check(HybridProblem<Config>(
        {.batch = 2, .tokens = tokens, .prefix = reads_encoder ? tokens / 3 : 0, .heads = 1, .query_heads = 2}));
  }
  HybridProblem<Config> ragged({.batch = 3, .tokens = 300, .heads = 1, .query_heads = 1}, 9);
  ragged.sequences.left_pads = {0, 37, 300};
  ragged.sequences.seq_lens = {300, 250, 300};
  check(ragged);
  // From a state: the first tokens, too, have older keys.
  const HybridProblem<Config> problem({.batch = 1, .tokens = 700, .prefix = reads_encoder ? 100 : 0, .heads = 1});
  const auto expected = reference_hybrid(problem);
  const auto begun = run_hybrid<Concurrent>(problem.piece(0, 300));
  const auto rest = run_hybrid<Concurrent>(problem.piece(300, 400), begun.states);
  CHECK(relative_error(joined_tokens(begun.output, rest.output).values, expected.values) <= tolerance<E>());
}

}  // namespace
}  // namespace jrt::test
