// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <jrt/mixer/window_attention.hpp>
#include <jrt/reference/window_attention.hpp>
#include <vector>

#include "support/linear_problem.hpp"
#include "support/tensor.hpp"

/// Inputs of window attention as plain values, and functions that place them, run an operation on a backend and
/// read the results.
namespace jrt::test {

template <class E, int d, int left>
using Plain = SlidingWindowAttention<E, d, left>;
template <class E, int d, int left>
struct Turned : SlidingWindowAttention<E, d, left> {
  using Rotary = RotaryHalves<d>;
};

struct WindowShape {
  std::int64_t batch = 2;
  std::int64_t tokens = 10;
  std::int64_t heads = 2;
  std::int64_t query_heads = 4;
};

template <class Config>
struct WindowProblem {
  using E = typename Config::Element;

  Tensor<E> query;
  Tensor<E> key;
  Tensor<E> value;
  SequenceLists sequences;
  double scale = 1 / std::sqrt(static_cast<double>(Config::head_dim));

  WindowProblem() = default;
  explicit WindowProblem(const WindowShape& shape, unsigned seed = 1)
      : query(random_tensor<E>({shape.batch, shape.tokens, shape.query_heads, Config::head_dim}, seed)),
        key(random_tensor<E>({shape.batch, shape.tokens, shape.heads, Config::head_dim}, seed + 1)),
        value(random_tensor<E>({shape.batch, shape.tokens, shape.heads, Config::value_dim}, seed + 2)) {}

  [[nodiscard]] TensorShape output_shape() const {
    return {query.shape.batch, query.shape.tokens, query.shape.heads, Config::value_dim};
  }
  [[nodiscard]] std::int64_t tokens() const { return query.shape.tokens; }
  [[nodiscard]] std::int64_t sequence_count() const {
    return sequences.cu_seqlens.empty() ? query.shape.batch : sequences.count;
  }

  /// Tokens [first, first + count) of every row, as sequences of their own.
  [[nodiscard]] WindowProblem piece(std::int64_t first, std::int64_t count) const {
    WindowProblem part;
    part.query = token_slice(query, first, count);
    part.key = token_slice(key, first, count);
    part.value = token_slice(value, first, count);
    part.scale = scale;
    return part;
  }
};

/// The elements of some caches: slots x heads, each a ring of keys, one of values, and a count.
template <class Config>
using Caches = std::vector<typename Config::Element>;

/// The oracle's outputs for the same problem, in double, from `initial` (one slot per sequence; empty: none).
template <class Config>
Tensor<double> reference_window(const WindowProblem<Config>& problem, Caches<InDouble<Config>> initial = {}) {
  using Double = InDouble<Config>;
  auto query = converted<double>(problem.query);
  auto key = converted<double>(problem.key);
  auto value = converted<double>(problem.value);
  auto output = zero_tensor<double>(problem.output_shape());
  PrefillArgs<Double> args;
  args.query = view_of(query);
  args.key = view_of(key);
  args.value = view_of(value);
  args.output = view_of(output);
  args.sequences = view_of(problem.sequences);
  args.scale = problem.scale;
  if (!initial.empty()) {
    args.initial_state = {
        view_pool<StateFormatOf<Double>>(initial.data(), problem.sequence_count(), problem.key.shape.heads)};
  }
  reference::prefill(args);
  return output;
}

template <class Config>
std::size_t cache_elements(std::int64_t slots, std::int64_t heads) {
  return static_cast<std::size_t>(slots * heads * StateFormatOf<Config>::head_elements);
}

/// Caches of sequences that have seen nothing, and ones that hold nothing sensible.
template <class Config>
Caches<Config> empty_caches(std::int64_t slots, std::int64_t heads) {
  return Caches<Config>(cache_elements<Config>(slots, heads));
}
template <class Config>
Caches<Config> poisoned_caches(std::int64_t slots, std::int64_t heads) {
  return Caches<Config>(cache_elements<Config>(slots, heads), poison<typename Config::Element>());
}

/// Elements of one slot of contiguous caches.
template <class Config>
Caches<Config> cache_of(const Caches<Config>& caches, std::int64_t slot, std::int64_t heads) {
  const auto each = static_cast<std::ptrdiff_t>(cache_elements<Config>(1, heads));
  return {caches.begin() + slot * each, caches.begin() + (slot + 1) * each};
}

/// The bytes that mean something: counts, and the rows of the rings that hold a token.
template <class Config>
std::vector<unsigned char> used_bytes(const Caches<Config>& caches) {
  using Format = StateFormatOf<Config>;
  std::vector<unsigned char> used;
  const auto append = [&](const void* from, std::size_t bytes) {
    const auto* const begin = static_cast<const unsigned char*>(from);
    used.insert(used.end(), begin, begin + bytes);
  };
  for (std::size_t at = 0; at < caches.size(); at += static_cast<std::size_t>(Format::head_elements)) {
    const auto* const head = caches.data() + at;
    std::int64_t count = 0;
    std::memcpy(&count, head + Format::count_offset, sizeof count);
    append(&count, sizeof count);
    const std::int64_t rows = std::clamp<std::int64_t>(count, 0, Format::rows);
    append(head, static_cast<std::size_t>(rows * Config::head_dim) * sizeof *head);
    append(head + Format::value_offset, static_cast<std::size_t>(rows * Config::value_dim) * sizeof *head);
  }
  return used;
}

/// A call's tensors in a backend's memory.
template <class Backend, class Config>
struct PlacedWindow {
  using E = typename Config::Element;
  Placed<Backend, E> query;
  Placed<Backend, E> key;
  Placed<Backend, E> value;
  Placed<Backend, E> output;
  double scale;

  /// All in one layout.
  PlacedWindow(const WindowProblem<Config>& problem, Layout layout)
      : query(problem.query, layout),
        key(problem.key, layout),
        value(problem.value, layout),
        output(problem.output_shape(), layout),
        scale(problem.scale) {}
  /// Each in another.
  explicit PlacedWindow(const WindowProblem<Config>& problem)
      : query(problem.query, Layout::spaced),
        key(problem.key, Layout::packed),
        value(problem.value, Layout::bhtd),
        output(problem.output_shape(), Layout::spaced),
        scale(problem.scale) {}

  template <class Args>
  Args args() {
    Args args;
    args.query = query.view();
    args.key = key.view();
    args.value = value.view();
    args.output = output.view();
    args.scale = scale;
    return args;
  }
};

template <class Config>
struct WindowResults {
  Tensor<typename Config::Element> output;
  Caches<Config> caches;
};

/// Prefill from `initial` (one slot per sequence; empty: none) on `Backend`. Also checks that nothing around the output was
/// touched.
template <class Backend, class Config>
WindowResults<Config> run_window(const WindowProblem<Config>& problem, const Caches<Config>& initial = {},
                                 const RunOptions& options = {}) {
  using Format = StateFormatOf<Config>;
  const std::int64_t heads = problem.key.shape.heads;
  const std::int64_t slots = problem.sequence_count();
  PlacedWindow<Backend, Config> placed(problem, options.layout);
  PlacedSequences<Backend> sequences(problem.sequences);
  typename Backend::template Array<typename Config::Element> initial_caches(initial);
  typename Backend::template Array<typename Config::Element> final_caches(poisoned_caches<Config>(slots, heads));
  typename Backend::template Array<std::uint8_t> has_initial(options.has_initial_state);
  auto args = placed.template args<PrefillArgs<Config>>();
  args.sequences = sequences.view();
  if (!initial.empty()) {
    args.initial_state = {view_pool<Format>(initial_caches.data(), slots, heads)};
  }
  if (!options.has_initial_state.empty()) {
    args.has_initial_state = has_initial.data();
  }
  args.final_state = {view_pool<Format>(final_caches.data(), slots, heads)};
  JRT_REQUIRE_OK(prefill(args, Backend::execution()));
  CHECK(placed.output.surroundings_intact());
  return {placed.output.read(), final_caches.read()};
}

/// Steps through `tokens` tokens of the problem from `first` on, `width` at a time, updating `caches` in place; the outputs
/// of all steps, one after the other.
template <class Backend, class Config>
Tensor<typename Config::Element> step_window(const WindowProblem<Config>& problem, std::int64_t first, std::int64_t tokens,
                                             Caches<Config>& caches, std::int64_t width = 1) {
  using Format = StateFormatOf<Config>;
  const std::int64_t batch = problem.query.shape.batch;
  TensorShape shape = problem.output_shape();
  shape.tokens = 0;
  Tensor<typename Config::Element> outputs{shape, {}};
  typename Backend::template Array<typename Config::Element> pool(caches);
  for (std::int64_t t = 0; t < tokens; t += width) {
    PlacedWindow<Backend, Config> placed(problem.piece(first + t, std::min(width, tokens - t)));
    auto args = placed.template args<DecodeArgs<Config>>();
    args.source = {view_pool<Format>(pool.data(), batch, problem.key.shape.heads)};
    JRT_REQUIRE_OK(decode_step(args, Backend::execution()));
    CHECK(placed.output.surroundings_intact());
    outputs = joined_tokens(outputs, placed.output.read());
  }
  caches = pool.read();
  return outputs;
}

}  // namespace jrt::test
