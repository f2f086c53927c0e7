// SPDX-License-Identifier: Apache-2.0
#include <jrt/mixer/window_attention.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <jrt/state_exchange.hpp>
#include <jrt/state_operations.hpp>

#include "support/backend.hpp"
#include "support/fuzz.hpp"
#include "support/staging_among_others.hpp"
#include "support/window_problem.hpp"

namespace jrt::test {
namespace {

static_assert(left_window_of(256) == 128);
static_assert(StateFormatOf<Plain<float, 64, 128>>::rows == 129);

/// Small, rotated, with a window that a few tokens fill: what most cases use.
using Small = Turned<double, 16, 4>;
using SmallFloat = Turned<float, 16, 4>;

template <class Config>
double error_of(const Tensor<typename Config::Element>& output, const WindowProblem<Config>& problem) {
  return relative_error(output.values, reference_window(problem).values);
}

/// Outputs within the specified bound of the oracle, which works in double on the same rounded inputs.
template <class Backend, class Config>
void check_against_reference(const WindowProblem<Config>& problem, const RunOptions& options = {}) {
  CHECK(error_of(run_window<Backend>(problem, {}, options).output, problem) <= tolerance<typename Config::Element>());
}

TEST_CASE_TEMPLATE("prefill agrees with the formula at every size", Config, Small, Plain<double, 16, 63>) {
  for (const std::int64_t tokens : edge_lengths()) {
    CAPTURE(tokens);
    check_against_reference<Simple>(WindowProblem<Config>({.tokens = tokens}));
  }
}

TEST_CASE_TEMPLATE("prefill agrees with the formula for windows around an edge", Config, Plain<double, 16, 0>,
                   Turned<double, 16, 1>, Plain<double, 40, 15>, Turned<double, 40, 64>, Turned<double, 16, 65>,
                   Plain<double, 112, 128>, Plain<double, 16, 300>) {
  check_against_reference<Concurrent>(WindowProblem<Config>({.batch = 1, .tokens = 317, .heads = 1, .query_heads = 2}));
}

TEST_CASE_TEMPLATE("prefill is within the bound of each element type", E, float, double, Half, BFloat16) {
  const WindowShape shape{.batch = 1, .tokens = 300};
  check_against_reference<Simple>(WindowProblem<Turned<E, 64, 128>>(shape));
  check_against_reference<Simple>(WindowProblem<Plain<E, 64, 128>>(shape));
}

/// Values of another dimension than keys.
struct Wide : Turned<float, 16, 7> {
  static constexpr int value_dim = 24;
};

TEST_CASE_TEMPLATE("other dimensions", Config, Turned<BFloat16, 112, 64>, Turned<float, 128, 15>, Plain<float, 5, 3>,
                   Wide) {
  check_against_reference<Simple>(WindowProblem<Config>({.tokens = 101}));
}

TEST_CASE("thousands of tokens, which several tasks share") {
  check_against_reference<Concurrent>(
      WindowProblem<Turned<float, 64, 128>>({.batch = 1, .tokens = 2500, .heads = 1, .query_heads = 1}));
}

TEST_CASE("the scale is an argument") {
  WindowProblem<Small> problem({.tokens = 30});
  for (const double scale : {0.0, 1.0, -0.7, 30.0}) {
    CAPTURE(scale);
    problem.scale = scale;
    check_against_reference<Simple>(problem);
  }
}

TEST_CASE("scores far beyond the range of the exponential") {
  WindowProblem<SmallFloat> problem({.tokens = 30});
  problem.scale = 1e4;
  for (const float y : run_window<Simple>(problem).output.values) {
    REQUIRE(std::isfinite(y));
  }
}

TEST_CASE_TEMPLATE("every layout gives the same result", E, float, Half) {
  const WindowProblem<Turned<E, 64, 128>> problem({.batch = 2, .tokens = 70});
  const auto contiguous = run_window<Simple>(problem);
  for (const Layout layout : all_layouts) {
    CAPTURE(static_cast<int>(layout));
    const auto placed = run_window<Simple>(problem, {}, {.layout = layout});
    CHECK(relative_error(placed.output.values, contiguous.output.values) <= tolerance<E>());
    CHECK(used_bytes<Turned<E, 64, 128>>(placed.caches) == used_bytes<Turned<E, 64, 128>>(contiguous.caches));
  }
}

TEST_CASE("grouped query heads equal repeated key heads") {
  const WindowProblem<Small> grouped({.tokens = 40, .heads = 2, .query_heads = 4});
  WindowProblem<Small> repeated = grouped;
  for (auto* tensor : {&repeated.key, &repeated.value}) {
    auto wide = *tensor;
    wide.shape.heads = 4;
    wide.values.resize(element_count(wide.shape));
    for (std::int64_t b = 0; b < wide.shape.batch; ++b) {
      for (std::int64_t t = 0; t < wide.shape.tokens; ++t) {
        for (std::int64_t h = 0; h < 4; ++h) {
          for (std::int64_t c = 0; c < wide.shape.dim; ++c) {
            wide.at(b, t, h, c) = tensor->at(b, t, h / 2, c);
          }
        }
      }
    }
    *tensor = wide;
  }
  CHECK(relative_error(run_window<Simple>(grouped).output.values, run_window<Simple>(repeated).output.values) <=
        tolerance<double>());
}

TEST_CASE_TEMPLATE("packed sequences equal separate calls", Backend, JRT_TEST_BACKENDS) {
  const std::vector<std::int64_t> lengths{49, 0, 1, 100, 5};
  WindowProblem<SmallFloat> packed({.batch = 1, .tokens = 155});
  packed.sequences.count = 5;
  packed.sequences.cu_seqlens = {0, 49, 49, 50, 150, 155};
  const auto together = run_window<Backend>(packed);
  std::int64_t first = 0;
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    CAPTURE(s);
    const auto alone = run_window<Backend>(packed.piece(first, lengths[s]));
    CHECK(token_slice(together.output, first, lengths[s]) == alone.output);
    const auto cache = cache_of<SmallFloat>(together.caches, static_cast<std::int64_t>(s), 2);
    CHECK(used_bytes<SmallFloat>(cache) == used_bytes<SmallFloat>(alone.caches));
    first += lengths[s];
  }
}

TEST_CASE_TEMPLATE("left pads and right padding are seen by nobody", Backend, JRT_TEST_BACKENDS) {
  WindowProblem<Small> problem({.batch = 4, .tokens = 40});
  problem.sequences.left_pads = {0, 3, 40, 7};
  problem.sequences.seq_lens = {40, 20, 40, 7};
  // Whatever padding holds.
  for (std::int64_t b = 0; b < 4; ++b) {
    const auto s = static_cast<std::size_t>(b);
    for (std::int64_t t = 0; t < 40; ++t) {
      if (t < problem.sequences.left_pads[s] || t >= problem.sequences.seq_lens[s]) {
        for (auto* tensor : {&problem.query, &problem.key, &problem.value}) {
          std::fill_n(&tensor->at(b, t, 0, 0), tensor->shape.heads * tensor->shape.dim, poison<double>());
        }
      }
    }
  }
  const auto results = run_window<Backend>(problem);
  CHECK(error_of(results.output, problem) <= tolerance<double>());
  CHECK(results.output.at(1, 2, 0, 0) == 0);
  CHECK(results.output.at(1, 20, 3, 15) == 0);
  WindowProblem<Small> alone;
  alone.query = token_slice(batch_slice(problem.query, 1), 3, 17);
  alone.key = token_slice(batch_slice(problem.key, 1), 3, 17);
  alone.value = token_slice(batch_slice(problem.value, 1), 3, 17);
  CHECK(used_bytes<Small>(cache_of<Small>(results.caches, 1, 2)) == used_bytes<Small>(run_window<Backend>(alone).caches));
  CHECK(used_bytes<Small>(cache_of<Small>(results.caches, 2, 2)) == used_bytes<Small>(empty_caches<Small>(1, 2)));
}

TEST_CASE_TEMPLATE("pieces equal the whole", Backend, JRT_TEST_BACKENDS) {
  const WindowProblem<Small> problem({.tokens = 150});
  const auto whole = run_window<Backend>(problem);
  for (const std::vector<std::int64_t>& lengths :
       std::vector<std::vector<std::int64_t>>{{1, 149}, {3, 1, 2, 0, 144}, {64, 5, 65, 16}, {5, 5, 140}}) {
    CAPTURE(lengths[0]);
    Tensor<double> output = token_slice(whole.output, 0, 0);
    Caches<Small> caches = empty_caches<Small>(2, 2);
    std::int64_t first = 0;
    for (const std::int64_t length : lengths) {
      auto part = run_window<Backend>(problem.piece(first, length), caches);
      output = joined_tokens(output, part.output);
      caches = part.caches;
      first += length;
    }
    CHECK(relative_error(output.values, whole.output.values) <= tolerance<double>());
    CHECK(used_bytes<Small>(caches) == used_bytes<Small>(whole.caches));
  }
}

TEST_CASE_TEMPLATE("the oracle, too, goes on from a cache", Config, Small, Plain<double, 16, 63>) {
  const WindowProblem<Config> problem({.tokens = 90});
  const auto whole = reference_window(problem);
  for (const std::int64_t cut : {0, 1, 4, 5, 6, 70}) {
    CAPTURE(cut);
    const auto begun = run_window<Simple>(problem.piece(0, cut));
    const auto rest = reference_window(problem.piece(cut, 90 - cut), begun.caches);
    CHECK(relative_error(rest.values, token_slice(whole, cut, 90 - cut).values) <= tolerance<double>());
  }
}

template <class Backend, class Config>
void check_steps(std::int64_t tokens, const std::vector<std::int64_t>& widths) {
  const WindowProblem<Config> problem({.tokens = tokens});
  const auto whole = run_window<Backend>(problem);
  const auto expected = reference_window(problem);
  for (const std::int64_t width : widths) {
    for (const std::int64_t prompt : {std::int64_t{0}, tokens / 3}) {
      CAPTURE(width);
      CAPTURE(prompt);
      auto begun = run_window<Backend>(problem.piece(0, prompt));
      const auto steps = step_window<Backend>(problem, prompt, tokens - prompt, begun.caches, width);
      CHECK(relative_error(joined_tokens(begun.output, steps).values, expected.values) <=
            tolerance<typename Config::Element>());
      if (sizeof(typename Config::Element) >= 4) {
        CHECK(used_bytes<Config>(begun.caches) == used_bytes<Config>(whole.caches));
      }
    }
  }
}

TEST_CASE_TEMPLATE("decode steps of any width equal prefill", Backend, JRT_TEST_BACKENDS) {
  check_steps<Backend, Small>(31, {1, 2, 3, 4, 5, 11});
  check_steps<Backend, SmallFloat>(31, {1, 5, 11});
  check_steps<Backend, Turned<BFloat16, 64, 128>>(141, {1, 47});
}
TEST_CASE("decode steps for windows around an edge") {
  check_steps<Simple, Plain<double, 16, 0>>(9, {1, 2});
  check_steps<Simple, Turned<double, 40, 64>>(140, {1, 67});
  check_steps<Concurrent, Turned<Half, 64, 128>>(141, {1});
  check_steps<Concurrent, Turned<float, 64, 128>>(270, {1, 5});
  check_steps<Concurrent, Wide>(30, {1, 4});
}

TEST_CASE("a sequence without initial state starts empty, whatever its slot holds") {
  const WindowProblem<Small> problem({.tokens = 12});
  const auto fresh = run_window<Simple>(problem);
  const auto ignoring = run_window<Simple>(problem, poisoned_caches<Small>(2, 2), {.has_initial_state = {0, 0}});
  CHECK(ignoring.output == fresh.output);
  CHECK(used_bytes<Small>(ignoring.caches) == used_bytes<Small>(fresh.caches));
  // One sequence goes on, the other begins.
  const auto mixed = run_window<Simple>(problem, fresh.caches, {.has_initial_state = {1, 0}});
  CHECK(batch_slice(mixed.output, 1) == batch_slice(fresh.output, 1));
  CHECK(batch_slice(mixed.output, 0) == batch_slice(run_window<Simple>(problem, fresh.caches).output, 0));
}

TEST_CASE_TEMPLATE("no tokens leave the cache as it was", Backend, JRT_TEST_BACKENDS) {
  const auto caches = run_window<Backend>(WindowProblem<Small>({.tokens = 7})).caches;
  const WindowProblem<Small> none({.tokens = 0});
  CHECK(used_bytes<Small>(run_window<Backend>(none, caches).caches) == used_bytes<Small>(caches));
  CHECK(used_bytes<Small>(run_window<Backend>(none).caches) == used_bytes<Small>(empty_caches<Small>(2, 2)));
  typename Backend::template Array<double> pool(caches);
  PlacedWindow<Backend, Small> placed(none);
  auto args = placed.template args<DecodeArgs<Small>>();
  args.source = {view_pool<StateFormatOf<Small>>(pool.data(), 2, 2)};
  JRT_REQUIRE_OK(decode_step(args, Backend::execution()));
  CHECK(used_bytes<Small>(pool.read()) == used_bytes<Small>(caches));
}

TEST_CASE_TEMPLATE("slots: source and destination apart, in any order, padding rows skipped", Backend, JRT_TEST_BACKENDS) {
  using Format = StateFormatOf<SmallFloat>;
  const auto caches = run_window<Backend>(WindowProblem<SmallFloat>({.batch = 3, .tokens = 7}, 5)).caches;
  const WindowProblem<SmallFloat> problem({.batch = 3, .tokens = 2});
  auto expected_caches = caches;
  const auto expected = step_window<Backend>(problem, 0, 2, expected_caches, 2);
  // Sequences 0, 1, 2 read slots 4, 1, - and write 0, -, 2: only the first is complete. Slots lie apart.
  constexpr std::int64_t numbers = 2 * Format::head_elements;
  constexpr std::int64_t stride = numbers + 16;
  Caches<SmallFloat> pool(6 * stride, poison<float>());
  std::copy_n(caches.begin(), numbers, pool.begin() + 4 * stride);
  std::copy_n(caches.begin() + numbers, numbers, pool.begin() + 1 * stride);
  typename Backend::template Array<float> memory(pool);
  typename Backend::template Array<std::int32_t> source({4, 1, skip_slot});
  typename Backend::template Array<std::int32_t> destination({0, skip_slot, 2});
  const StatePoolView<Format> view{memory.data(), 6, 2, stride};
  const auto check = [&](const auto& output, const Caches<SmallFloat>& after) {
    CHECK(relative_error(batch_slice(output, 0).values, batch_slice(expected, 0).values) <= tolerance<float>());
    for (const std::int64_t b : {1, 2}) {
      for (const float y : batch_slice(output, b).values) {
        CHECK(y == 0);
      }
    }
    CHECK(used_bytes<SmallFloat>({after.begin(), after.begin() + numbers}) ==
          used_bytes<SmallFloat>(cache_of<SmallFloat>(expected_caches, 0, 2)));
    CHECK(std::memcmp(after.data() + numbers, pool.data() + numbers, (6 * stride - numbers) * sizeof(float)) == 0);
  };
  {
    PlacedWindow<Backend, SmallFloat> placed(problem);
    auto args = placed.template args<DecodeArgs<SmallFloat>>();
    args.source = {view, source.data()};
    args.destination = {view, destination.data()};
    JRT_REQUIRE_OK(decode_step(args, Backend::execution()));
    check(placed.output.read(), memory.read());
  }
  {
    PlacedWindow<Backend, SmallFloat> placed(problem, Layout::bthd);
    auto args = placed.template args<PrefillArgs<SmallFloat>>();
    args.initial_state = {view, source.data()};
    args.final_state = {view, destination.data()};
    JRT_REQUIRE_OK(prefill(args, Backend::execution()));
    check(placed.output.read(), memory.read());
  }
}

TEST_CASE_TEMPLATE("in place and to another slot give the same bits", Backend, JRT_TEST_BACKENDS) {
  using Format = StateFormatOf<Small>;
  for (const std::int64_t tokens : {1, 3, 9}) {
    CAPTURE(tokens);
    const auto caches = run_window<Backend>(WindowProblem<Small>({.tokens = 7}, 5)).caches;
    const WindowProblem<Small> problem({.tokens = tokens});
    auto in_place = caches;
    const auto expected = step_window<Backend>(problem, 0, tokens, in_place, tokens);
    typename Backend::template Array<double> source(caches);
    typename Backend::template Array<double> destination(poisoned_caches<Small>(2, 2));
    PlacedWindow<Backend, Small> placed(problem);
    auto args = placed.template args<DecodeArgs<Small>>();
    args.source = {view_pool<Format>(source.data(), 2, 2)};
    args.destination = {view_pool<Format>(destination.data(), 2, 2)};
    JRT_REQUIRE_OK(decode_step(args, Backend::execution()));
    CHECK(placed.output.read() == expected);
    CHECK(used_bytes<Small>(destination.read()) == used_bytes<Small>(in_place));
    CHECK(source.read() == caches);
    // The same for prefill.
    const auto apart = run_window<Backend>(problem, caches);
    PlacedWindow<Backend, Small> again(problem, Layout::bthd);
    auto prefill_args = again.template args<PrefillArgs<Small>>();
    prefill_args.initial_state = args.source;
    prefill_args.final_state = args.source;
    JRT_REQUIRE_OK(prefill(prefill_args, Backend::execution()));
    CHECK(again.output.read() == apart.output);
    CHECK(used_bytes<Small>(source.read()) == used_bytes<Small>(apart.caches));
  }
}

template <class Backend, class Config>
void check_staged(std::int64_t before) {
  using Format = StateFormatOf<Config>;
  using E = typename Config::Element;
  CAPTURE(before);
  constexpr std::int64_t drafted = 8;
  constexpr std::int64_t batch = drafted + 1;  // sequence b accepts b tokens
  const auto caches = run_window<Backend>(WindowProblem<Config>({.batch = batch, .tokens = before}, 5)).caches;
  const WindowProblem<Config> problem({.batch = batch, .tokens = drafted});
  auto stepped = caches;
  const auto expected = step_window<Backend>(problem, 0, drafted, stepped);

  typename Backend::template Array<E> memory(caches);
  const StatePoolView<Format> pool = view_pool<Format>(memory.data(), batch, 2);
  StagingAmongOthers<Backend, Config> staged(batch, drafted + 1, 2);
  const StagingView<Config> staging = staged.view();
  std::int64_t first = 0;
  for (const std::int64_t width : {1, 3, 1, 0, 3}) {
    CAPTURE(first);
    PlacedWindow<Backend, Config> placed(problem.piece(first, width));
    auto args = placed.template args<StagedStepArgs<Config>>();
    args.state = {pool};
    args.staging = staging;
    args.already_staged = first;
    JRT_REQUIRE_OK(staged_step(args, Backend::execution()));
    CHECK(relative_error(placed.output.read().values, token_slice(expected, first, width).values) <= tolerance<E>());
    CHECK(placed.output.surroundings_intact());
    first += width;
  }
  const auto committed_before = memory.read();
  CHECK(std::memcmp(committed_before.data(), caches.data(), caches.size() * sizeof(E)) == 0);
  CHECK(staged.others_intact());

  std::vector<std::int32_t> counts;
  for (std::int32_t b = 0; b < batch; ++b) {
    counts.push_back(b);
  }
  typename Backend::template Array<std::int32_t> accepted(counts);
  typename Backend::template Array<E> committed(poisoned_caches<Config>(batch, 2));
  CommitArgs<Config> args;
  args.staging = staging;
  args.accepted_tokens = accepted.data();
  args.source = {pool};
  args.destination = {view_pool<Format>(committed.data(), batch, 2)};
  JRT_REQUIRE_OK(commit(args, Backend::execution()));
  args.destination = {};
  JRT_REQUIRE_OK(commit(args, Backend::execution()));
  const auto apart = committed.read();
  const auto in_place = memory.read();
  for (std::int64_t b = 0; b < batch; ++b) {
    CAPTURE(b);
    auto wanted = caches;
    step_window<Backend>(problem, 0, b, wanted);
    const auto bytes = used_bytes<Config>(cache_of<Config>(wanted, b, 2));
    CHECK(used_bytes<Config>(cache_of<Config>(apart, b, 2)) == bytes);
    CHECK(used_bytes<Config>(cache_of<Config>(in_place, b, 2)) == bytes);
  }
}

TEST_CASE_TEMPLATE("staged steps: outputs as if committed, commit of k is k steps, cache untouched", Backend,
                   JRT_TEST_BACKENDS) {
  for (const std::int64_t before : {0, 2, 7}) {
    check_staged<Backend, Small>(before);
    check_staged<Backend, SmallFloat>(before);
  }
}

TEST_CASE_TEMPLATE("staged steps and commit skip padding rows", Backend, JRT_TEST_BACKENDS) {
  using Format = StateFormatOf<Small>;
  const auto caches = run_window<Backend>(WindowProblem<Small>({.batch = 3, .tokens = 6}, 5)).caches;
  const WindowProblem<Small> problem({.batch = 3, .tokens = 2});
  typename Backend::template Array<double> memory(caches);
  typename Backend::template Array<double> expected(caches);
  typename Backend::template Array<std::int32_t> slots({2, skip_slot, 0});
  StagingView<Small> staging{nullptr, 3, 2, 2};
  typename Backend::template Array<double> staged(std::vector<double>(staging.bytes() / sizeof(double), poison<double>()));
  staging.data = staged.data();
  PlacedWindow<Backend, Small> placed(problem);
  auto args = placed.template args<StagedStepArgs<Small>>();
  args.state = {view_pool<Format>(memory.data(), 3, 2), slots.data()};
  args.staging = staging;
  JRT_REQUIRE_OK(staged_step(args, Backend::execution()));
  for (const double y : batch_slice(placed.output.read(), 1).values) {
    CHECK(y == 0);
  }
  typename Backend::template Array<std::int32_t> accepted({2, 2, 1});
  CommitArgs<Small> commit_args;
  commit_args.staging = staging;
  commit_args.accepted_tokens = accepted.data();
  commit_args.source = args.state;
  JRT_REQUIRE_OK(commit(commit_args, Backend::execution()));

  // Both take the first token, the first sequence the second, too.
  for (const std::int64_t token : {0, 1}) {
    typename Backend::template Array<std::int32_t> taking({2, skip_slot, token == 0 ? 0 : skip_slot});
    PlacedWindow<Backend, Small> step(problem.piece(token, 1));
    auto step_args = step.template args<DecodeArgs<Small>>();
    step_args.source = {view_pool<Format>(expected.data(), 3, 2), taking.data()};
    JRT_REQUIRE_OK(decode_step(step_args, Backend::execution()));
  }
  CHECK(used_bytes<Small>(memory.read()) == used_bytes<Small>(expected.read()));
}

TEST_CASE_TEMPLATE("a fork goes its own way, a cleared slot begins anew", Backend, JRT_TEST_BACKENDS) {
  using Format = StateFormatOf<Small>;
  const WindowProblem<Small> prompt({.batch = 1, .tokens = 7}, 5);
  const WindowProblem<Small> a({.batch = 1, .tokens = 9}, 20);
  const WindowProblem<Small> b({.batch = 1, .tokens = 9}, 40);
  const auto begun = run_window<Backend>(prompt);
  Caches<Small> pool = poisoned_caches<Small>(2, 2);
  std::copy(begun.caches.begin(), begun.caches.end(), pool.begin());
  typename Backend::template Array<double> memory(pool);
  typename Backend::template Array<std::int32_t> from({0});
  typename Backend::template Array<std::int32_t> to({1});
  const StatePoolView<Format> view = view_pool<Format>(memory.data(), 2, 2);
  const StateSlots<Format> source{view, from.data()};
  const StateSlots<Format> destination{view, to.data()};
  JRT_REQUIRE_OK(copy_states(source, destination, 1, Backend::execution()));
  const auto after = memory.read();
  CHECK(used_bytes<Small>(cache_of<Small>(after, 1, 2)) == used_bytes<Small>(begun.caches));
  auto first = cache_of<Small>(after, 0, 2);
  auto second = cache_of<Small>(after, 1, 2);
  for (const auto& [rest, caches] : {std::pair{&a, &first}, std::pair{&b, &second}}) {
    WindowProblem<Small> whole;
    whole.query = joined_tokens(prompt.query, rest->query);
    whole.key = joined_tokens(prompt.key, rest->key);
    whole.value = joined_tokens(prompt.value, rest->value);
    const auto output = joined_tokens(begun.output, step_window<Backend>(*rest, 0, 9, *caches, 2));
    CHECK(error_of(output, whole) <= tolerance<double>());
  }
  CHECK(used_bytes<Small>(first) != used_bytes<Small>(second));

  JRT_REQUIRE_OK(clear_states(destination, 1, Backend::execution()));
  CHECK(used_bytes<Small>(cache_of<Small>(memory.read(), 0, 2)) == used_bytes<Small>(begun.caches));
  auto cleared = cache_of<Small>(memory.read(), 1, 2);
  CHECK(used_bytes<Small>(cleared) == used_bytes<Small>(empty_caches<Small>(1, 2)));
  CHECK(error_of(step_window<Backend>(a, 0, 9, cleared), a) <= tolerance<double>());
}

template <class Backend, class Config>
void check_saving(std::int64_t tokens) {
  using Format = StateFormatOf<Config>;
  using E = typename Config::Element;
  const auto caches = run_window<Backend>(WindowProblem<Config>({.batch = 3, .tokens = tokens})).caches;
  typename Backend::template Array<E> memory(caches);
  typename Backend::template Array<E> back(poisoned_caches<Config>(3, 2));
  typename Backend::template Array<std::int32_t> from({2, skip_slot, 0});
  typename Backend::template Array<std::int32_t> to({0, 1, 2});
  std::vector<std::byte> buffer(static_cast<std::size_t>(saved_states_bytes<Format>(3, 2)));
  JRT_REQUIRE_OK(
      save_states<Format>({view_pool<Format>(memory.data(), 3, 2), from.data()}, 3, buffer, Backend::execution()));
  static_cast<void>(memory.read());  // waits for the backend
  JRT_REQUIRE_OK(load_states<Format>(buffer, {view_pool<Format>(back.data(), 3, 2), to.data()}, 3, Backend::execution()));
  const auto loaded = back.read();
  const auto bytes = [](const Caches<Config>& all, std::int64_t slot) {
    return used_bytes<Config>(cache_of<Config>(all, slot, 2));
  };
  CHECK(bytes(loaded, 0) == bytes(caches, 2));
  CHECK(bytes(loaded, 1) == used_bytes<Config>(empty_caches<Config>(1, 2)));
  CHECK(bytes(loaded, 2) == bytes(caches, 0));
}

TEST_CASE_TEMPLATE("saved caches come back to the bit", Backend, JRT_TEST_BACKENDS) {
  check_saving<Backend, Small>(3);
  check_saving<Backend, Small>(13);
  check_saving<Backend, Turned<BFloat16, 64, 128>>(140);
}

TEST_CASE("caches of another window are refused") {
  using Format = StateFormatOf<Small>;
  using Other = StateFormatOf<Turned<double, 16, 5>>;
  Simple::Array<double> memory(empty_caches<Small>(1, 2));
  Simple::Array<double> other(empty_caches<Turned<double, 16, 5>>(1, 2));
  std::vector<std::byte> buffer(static_cast<std::size_t>(saved_states_bytes<Format>(1, 2)));
  JRT_REQUIRE_OK(save_states<Format>({view_pool<Format>(memory.data(), 1, 2)}, 1, buffer, Simple::execution()));
  static_cast<void>(memory.read());  // waits for the backend
  const Status status = load_states<Other>(buffer, {view_pool<Other>(other.data(), 1, 2)}, 1, Simple::execution());
  CHECK(status.code() == StatusCode::corrupt_data);
  CHECK(status.message().find("number of rows is 5, but must be 6") != std::string_view::npos);
}

TEST_CASE("a window of at least all tokens is full causal attention") {
  const WindowProblem<Plain<double, 16, 64>> problem({.tokens = 65});
  const auto output = run_window<Simple>(problem).output;
  WindowProblem<Plain<double, 16, 300>> same;
  same.query = problem.query;
  same.key = problem.key;
  same.value = problem.value;
  CHECK(relative_error(output.values, reference_window(same).values) <= tolerance<double>());
  CHECK(relative_error(run_window<Simple>(same).output.values, output.values) <= tolerance<double>());
}

TEST_CASE("no window at all gives the values") {
  const WindowProblem<Plain<double, 16, 0>> problem({.tokens = 20, .heads = 2, .query_heads = 2});
  CHECK(relative_error(run_window<Simple>(problem).output.values, problem.value.values) <= 1e-15);
}

TEST_CASE_TEMPLATE("nothing outside the window matters", Backend, JRT_TEST_BACKENDS) {
  const WindowProblem<SmallFloat> problem({.tokens = 90});
  const WindowProblem<SmallFloat> other({.tokens = 90}, 77);
  const auto output = run_window<Backend>(problem).output;
  // All tokens but those that queries [first, last) see.
  for (const auto& range : {std::pair{30, 60}, std::pair{64, 65}, std::pair{10, 90}, std::pair{0, 1}}) {
    const std::int64_t first = range.first;
    const std::int64_t last = range.second;
    CAPTURE(first);
    const std::int64_t seen = std::max<std::int64_t>(0, first - 4);
    WindowProblem<SmallFloat> changed = other;
    for (auto tensors : {std::pair{&changed.query, &problem.query}, std::pair{&changed.key, &problem.key},
                         std::pair{&changed.value, &problem.value}}) {
      for (std::int64_t b = 0; b < 2; ++b) {
        std::copy(&tensors.second->at(b, seen, 0, 0),
                  &tensors.second->at(b, seen, 0, 0) + (last - seen) * tensors.second->shape.heads * 16,
                  &tensors.first->at(b, seen, 0, 0));
      }
    }
    CHECK(token_slice(run_window<Backend>(changed).output, first, last - first) ==
          token_slice(output, first, last - first));
  }
}

TEST_CASE("a rotation by whole positions cancels: outputs depend on distances only") {
  // A prompt before them moves the tokens without being seen.
  using Config = Turned<double, 16, 4>;
  const WindowProblem<Config> problem({.tokens = 40});
  const auto whole = run_window<Simple>(problem).output;
  const auto later = run_window<Simple>(problem.piece(20, 20)).output;
  CHECK(relative_error(token_slice(later, 4, 16).values, token_slice(whole, 24, 16).values) <= tolerance<double>());
}

TEST_CASE("a workspace of the size asked for is enough, and one byte less is refused") {
  const WindowProblem<SmallFloat> problem({.tokens = 70});
  PlacedWindow<Concurrent, SmallFloat> placed(problem, Layout::bthd);
  auto args = placed.args<PrefillArgs<SmallFloat>>();
  const auto on = Concurrent::execution();
  const std::size_t bytes = prefill_workspace_bytes(args, on);
  const auto expected = run_window<Concurrent>(problem).output;
  for (const std::size_t shift : {0, 1, 63}) {
    CAPTURE(shift);
    // Poison around the workspace shows whether the call stays inside; poison in it, that it reads nothing unwritten.
    Concurrent::Array<unsigned char> workspace(std::vector<unsigned char>(bytes + shift + 64, 0xff));
    JRT_REQUIRE_OK(prefill(args, {workspace.data() + shift, bytes}, on));
    CHECK(placed.output.read() == expected);
    const auto memory = workspace.read();
    for (std::size_t i = 0; i < shift; ++i) {
      CHECK(memory[i] == 0xff);
    }
    for (std::size_t i = bytes + shift; i < memory.size(); ++i) {
      CHECK(memory[i] == 0xff);
    }
    if (bytes > 0) {
      CHECK_FALSE(prefill(args, {workspace.data() + shift, bytes - 1}, on).ok());
    }
  }
}

/// Packed or padded sequences, or a dense batch that prefills and steps go through in random pieces.
template <class Backend, class Config>
double random_case(Random& random) {
  using E = typename Config::Element;
  const std::int64_t heads = random.between(1, 3);
  WindowShape shape{.batch = random.between(1, 3), .heads = heads, .query_heads = heads * random.between(1, 3)};
  const auto seed = static_cast<unsigned>(random.between(1, 1 << 30));
  const auto as_int = [](std::int64_t number) { return static_cast<std::int32_t>(number); };
  const RunOptions options{.layout = all_layouts[random.between(0, 3)]};
  SequenceLists lists;
  if (random.chance(0.3)) {
    lists.count = random.between(1, 5);
    lists.cu_seqlens = {0};
    for (std::int64_t b = 0; b < lists.count; ++b) {
      const std::int64_t tokens = random_length(random, 80);
      lists.cu_seqlens.push_back(lists.cu_seqlens.back() + as_int(tokens));
      lists.left_pads.push_back(random.chance(0.3) ? as_int(random.between(0, tokens)) : 0);
    }
    shape.batch = 1;
    shape.tokens = lists.cu_seqlens.back();
  } else {
    shape.tokens = random_length(random, 160);
    if (random.chance(0.5)) {
      for (std::int64_t b = 0; b < shape.batch; ++b) {
        lists.seq_lens.push_back(as_int(random.between(0, shape.tokens)));
        lists.left_pads.push_back(as_int(random.between(0, lists.seq_lens.back())));
      }
    }
  }
  WindowProblem<Config> problem(shape, seed);
  problem.sequences = lists;
  problem.scale *= 1 + 0.1 * static_cast<double>(random.between(-3, 3));
  Tensor<E> output;
  if (!lists.left_pads.empty()) {
    output = run_window<Backend>(problem, {}, options).output;
  } else {
    output = Tensor<E>{problem.output_shape(), {}};
    output.shape.tokens = 0;
    Caches<Config> caches = empty_caches<Config>(shape.batch, heads);
    for (std::int64_t first = 0; first < shape.tokens;) {
      const std::int64_t count = std::min(shape.tokens - first, random.between(1, random.chance(0.5) ? 12 : 160));
      if (random.chance(0.5)) {
        auto part = run_window<Backend>(problem.piece(first, count), caches, options);
        output = joined_tokens(output, part.output);
        caches = part.caches;
      } else {
        output = joined_tokens(output, step_window<Backend>(problem, first, count, caches, random.between(1, 9)));
      }
      first += count;
    }
  }
  return relative_error(output.values, reference_window(problem).values);
}

template <class Backend, class Config>
double worst_random_case(unsigned seed, int cases) {
  Random random(seed);
  double worst = 0;
  for (int i = 0; i < cases; ++i) {
    CAPTURE(i);
    const double error = random_case<Backend, Config>(random);
    CHECK(error <= tolerance<typename Config::Element>());
    worst = std::max(worst, error);
  }
  return worst;
}

TEST_CASE("random calls") {
  CHECK(worst_random_case<Simple, Small>(1, 20) <= tolerance<double>());
  CHECK(worst_random_case<Concurrent, Turned<float, 64, 128>>(2, 20) <= tolerance<float>());
  CHECK(worst_random_case<Concurrent, Turned<double, 40, 64>>(3, 20) <= tolerance<double>());
}

}  // namespace
}  // namespace jrt::test
