// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <jrt/mixer/hybrid_attention.hpp>
#include <jrt/reference/hybrid_attention.hpp>
#include <vector>

#include "support/linear_problem.hpp"
#include "support/tensor.hpp"

/// Inputs of linear and window attention in one mixer as plain values, and functions that place them, run an
/// operation on a backend and read the results.
namespace jrt::test {

template <class E, int left, int d = 16, int dv = 24>
using Mixed = HybridAttention<PrefixLinearAttention<E, d, dv>, WindowBeside<PrefixLinearAttention<E, d, dv>, left>>;
template <class E, int left, int d = 16, int dv = 24>
using MixedCausal = HybridAttention<BasedLinearAttention<E, d, dv>, WindowBeside<BasedLinearAttention<E, d, dv>, left>>;

template <class Config>
struct HybridProblem {
  using E = typename Config::Element;
  static constexpr int d = Config::Window::head_dim;
  static constexpr int dv = Config::Window::value_dim;

  Tensor<E> query;
  Tensor<E> key;
  Tensor<E> value;
  Tensor<E> key_encoder;
  Tensor<E> value_encoder;
  SequenceLists sequences;

  HybridProblem() = default;
  explicit HybridProblem(const ProblemShape& shape, unsigned seed = 1, double scale = 1)
      : query(random_tensor<E>({shape.batch, shape.tokens, shape.query_heads, d}, seed, scale)),
        key(random_tensor<E>({shape.batch, shape.tokens, shape.heads, d}, seed + 1, scale)),
        value(random_tensor<E>({shape.batch, shape.tokens, shape.heads, dv}, seed + 2)),
        key_encoder(random_tensor<E>({shape.batch, shape.prefix, shape.heads, d}, seed + 3, scale)),
        value_encoder(random_tensor<E>({shape.batch, shape.prefix, shape.heads, dv}, seed + 4)) {}

  [[nodiscard]] TensorShape output_shape() const { return {query.shape.batch, query.shape.tokens, query.shape.heads, dv}; }
  [[nodiscard]] std::int64_t tokens() const { return query.shape.tokens; }
  [[nodiscard]] std::int64_t heads() const { return key.shape.heads; }
  [[nodiscard]] std::int64_t sequence_count() const {
    return sequences.cu_seqlens.empty() ? query.shape.batch : sequences.count;
  }

  /// Tokens [first, first + count) of every row, as sequences of their own; the encoder region stays with token 0.
  [[nodiscard]] HybridProblem piece(std::int64_t first, std::int64_t count) const {
    HybridProblem part;
    part.query = token_slice(query, first, count);
    part.key = token_slice(key, first, count);
    part.value = token_slice(value, first, count);
    const std::int64_t encoder_tokens = first == 0 ? key_encoder.shape.tokens : 0;
    part.key_encoder = token_slice(key_encoder, 0, encoder_tokens);
    part.value_encoder = token_slice(value_encoder, 0, encoder_tokens);
    return part;
  }
};

/// Some states: slots x heads, in the format's unit of memory.
using MixedStates = std::vector<std::uint64_t>;

/// The oracle's outputs for the same problem, in double, from `initial` (one slot per sequence, of the mixer in double;
/// empty: none).
template <class Config>
Tensor<double> reference_hybrid(const HybridProblem<Config>& problem, MixedStates initial = {}) {
  using Double = HybridAttention<InDouble<typename Config::Linear>, InDouble<typename Config::Window>>;
  auto query = converted<double>(problem.query);
  auto key = converted<double>(problem.key);
  auto value = converted<double>(problem.value);
  auto key_encoder = converted<double>(problem.key_encoder);
  auto value_encoder = converted<double>(problem.value_encoder);
  auto output = zero_tensor<double>(problem.output_shape());
  PrefillArgs<Double> args;
  args.query = view_of(query);
  args.key = view_of(key);
  args.value = view_of(value);
  args.key_encoder = view_of(key_encoder);
  args.value_encoder = view_of(value_encoder);
  args.output = view_of(output);
  args.sequences = view_of(problem.sequences);
  if (!initial.empty()) {
    args.initial_state = {view_pool<StateFormatOf<Double>>(initial.data(), problem.sequence_count(), problem.heads())};
  }
  reference::prefill(args);
  return output;
}

template <class Config>
std::size_t mixed_units(std::int64_t slots, std::int64_t heads) {
  return static_cast<std::size_t>(slots * heads * StateFormatOf<Config>::head_elements);
}
/// States of sequences that have seen nothing, and ones that hold nothing sensible: NaN in any type.
template <class Config>
MixedStates empty_mixed(std::int64_t slots, std::int64_t heads) {
  return MixedStates(mixed_units<Config>(slots, heads));
}
template <class Config>
MixedStates poisoned_mixed(std::int64_t slots, std::int64_t heads) {
  return MixedStates(mixed_units<Config>(slots, heads), ~std::uint64_t{0});
}
template <class Config>
MixedStates mixed_of(const MixedStates& states, std::int64_t slot, std::int64_t heads) {
  const auto each = static_cast<std::ptrdiff_t>(mixed_units<Config>(1, heads));
  return {states.begin() + slot * each, states.begin() + (slot + 1) * each};
}

/// What means something in some states: the sums, and the bytes of rings that hold a token, counts first.
struct MixedContents {
  std::vector<double> sums;
  std::vector<unsigned char> rings;

  friend bool operator==(const MixedContents&, const MixedContents&) = default;
};

template <class Config>
MixedContents contents_of(const MixedStates& states) {
  using Format = StateFormatOf<Config>;
  using Linear = typename Format::LinearFormat;
  using Ring = typename Format::WindowFormat;
  MixedContents contents;
  for (std::size_t at = 0; at < states.size(); at += static_cast<std::size_t>(Format::head_elements)) {
    const auto* const head = reinterpret_cast<const unsigned char*>(states.data() + at);
    std::vector<typename Linear::Scalar> sums(static_cast<std::size_t>(Linear::head_values));
    std::memcpy(sums.data(), head, sums.size() * sizeof sums[0]);
    for (const auto number : sums) {
      contents.sums.push_back(convert<double>(number));
    }
    const auto* const ring = head + Format::window_offset_bytes;
    constexpr auto size = static_cast<std::int64_t>(sizeof(typename Ring::Scalar));
    std::int64_t count = 0;
    std::memcpy(&count, ring + Ring::count_offset * size, sizeof count);
    const auto append = [&](const unsigned char* from, std::int64_t bytes) {
      contents.rings.insert(contents.rings.end(), from, from + bytes);
    };
    append(ring + Ring::count_offset * size, sizeof count);
    const std::int64_t rows = std::clamp<std::int64_t>(count, 0, Ring::rows);
    append(ring, rows * Ring::input_dim * size);
    append(ring + Ring::value_offset * size, rows * Ring::columns * size);
  }
  return contents;
}

/// Whether two states have the same rings, and sums as near as their type allows.
template <class Config>
void check_same_state(const MixedStates& a, const MixedStates& b) {
  const MixedContents x = contents_of<Config>(a);
  const MixedContents y = contents_of<Config>(b);
  CHECK(x.rings == y.rings);
  CHECK(relative_error(x.sums, y.sums) <= tolerance<typename Config::Element>());
}

/// A call's tensors in a backend's memory.
template <class Backend, class Config>
struct PlacedHybrid {
  using E = typename Config::Element;
  Placed<Backend, E> query;
  Placed<Backend, E> key;
  Placed<Backend, E> value;
  Placed<Backend, E> key_encoder;
  Placed<Backend, E> value_encoder;
  Placed<Backend, E> output;
  PlacedSequences<Backend> sequences;

  PlacedHybrid(const HybridProblem<Config>& problem, Layout layout)
      : query(problem.query, layout),
        key(problem.key, layout),
        value(problem.value, layout),
        key_encoder(problem.key_encoder, layout),
        value_encoder(problem.value_encoder, layout),
        output(problem.output_shape(), layout),
        sequences(problem.sequences) {}

  template <class Args>
  Args args() {
    Args args;
    args.query = query.view();
    args.key = key.view();
    args.value = value.view();
    args.output = output.view();
    if constexpr (requires { args.key_encoder; }) {
      args.key_encoder = key_encoder.view();
      args.value_encoder = value_encoder.view();
      args.sequences = sequences.view();
    }
    return args;
  }
};

template <class Config>
struct HybridResults {
  Tensor<typename Config::Element> output;
  MixedStates states;
};

/// Prefill from `initial` (one slot per sequence; empty: none). Also checks that nothing around the output was touched.
template <class Backend, class Config>
HybridResults<Config> run_hybrid(const HybridProblem<Config>& problem, const MixedStates& initial = {},
                                 const RunOptions& options = {}) {
  using Format = StateFormatOf<Config>;
  const std::int64_t heads = problem.heads();
  const std::int64_t slots = problem.sequence_count();
  PlacedHybrid<Backend, Config> placed(problem, options.layout);
  typename Backend::template Array<std::uint64_t> initial_states(initial);
  typename Backend::template Array<std::uint64_t> final_states(poisoned_mixed<Config>(slots, heads));
  typename Backend::template Array<std::uint8_t> has_initial(options.has_initial_state);
  auto args = placed.template args<PrefillArgs<Config>>();
  if (!initial.empty()) {
    args.initial_state = {view_pool<Format>(initial_states.data(), slots, heads)};
  }
  if (!options.has_initial_state.empty()) {
    args.has_initial_state = has_initial.data();
  }
  args.final_state = {view_pool<Format>(final_states.data(), slots, heads)};
  JRT_REQUIRE_OK(prefill(args, Backend::execution()));
  CHECK(placed.output.surroundings_intact());
  return {placed.output.read(), final_states.read()};
}

/// Steps through `tokens` tokens of the problem from `first` on, `width` at a time, updating `states` in place; the outputs
/// of all steps, one after the other.
template <class Backend, class Config>
Tensor<typename Config::Element> step_hybrid(const HybridProblem<Config>& problem, std::int64_t first, std::int64_t tokens,
                                             MixedStates& states, std::int64_t width = 1, Layout layout = Layout::spaced) {
  using Format = StateFormatOf<Config>;
  TensorShape shape = problem.output_shape();
  shape.tokens = 0;
  Tensor<typename Config::Element> outputs{shape, {}};
  typename Backend::template Array<std::uint64_t> pool(states);
  for (std::int64_t t = 0; t < tokens; t += width) {
    PlacedHybrid<Backend, Config> placed(problem.piece(first + t, std::min(width, tokens - t)), layout);
    auto args = placed.template args<DecodeArgs<Config>>();
    args.source = {view_pool<Format>(pool.data(), problem.query.shape.batch, problem.heads())};
    JRT_REQUIRE_OK(decode_step(args, Backend::execution()));
    CHECK(placed.output.surroundings_intact());
    outputs = joined_tokens(outputs, placed.output.read());
  }
  states = pool.read();
  return outputs;
}

}  // namespace jrt::test
