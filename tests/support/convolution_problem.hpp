// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <jrt/mixer/gated_convolution.hpp>
#include <jrt/reference/gated_convolution.hpp>
#include <vector>

#include "support/linear_problem.hpp"
#include "support/tensor.hpp"

/// A convolution's inputs as plain values, and functions that place inputs, run an operation on a
/// backend and read the results.
namespace jrt::test {

struct ConvolutionShape {
  std::int64_t batch = 2;
  std::int64_t tokens = 10;
  std::int64_t channels = 8;
  bool has_gate = true;
  bool has_bias = true;
};

template <class Config>
struct ConvolutionProblem {
  using E = typename Config::Element;
  using Weight = typename Config::Weight;
  static constexpr std::int64_t K = Config::kernel_width;

  Tensor<E> input;
  Tensor<E> gate;  ///< without values: none
  std::vector<Weight> weight;
  std::vector<Weight> bias;  ///< empty: none
  SequenceLists sequences;

  ConvolutionProblem() = default;
  explicit ConvolutionProblem(const ConvolutionShape& shape, unsigned seed = 1)
      : input(random_tensor<E>({shape.batch, shape.tokens, 1, shape.channels}, seed)),
        weight(random_tensor<Weight>({1, 1, shape.channels, K}, seed + 2, 0.6).values) {
    if (shape.has_gate) {
      gate = random_tensor<E>(input.shape, seed + 1);
    }
    if (shape.has_bias) {
      bias = random_tensor<Weight>({1, 1, 1, shape.channels}, seed + 3, 0.5).values;
    }
  }

  [[nodiscard]] bool has_gate() const { return gate.shape.dim != 0; }
  [[nodiscard]] std::int64_t channels() const { return input.shape.dim; }
  [[nodiscard]] std::int64_t sequence_count() const {
    return sequences.cu_seqlens.empty() ? input.shape.batch : sequences.count;
  }
};

/// The same weights on tokens [first, first + count) of every sequence.
template <class Config>
ConvolutionProblem<Config> token_slice(const ConvolutionProblem<Config>& from, std::int64_t first, std::int64_t count) {
  ConvolutionProblem<Config> slice = from;
  slice.input = token_slice(from.input, first, count);
  if (from.has_gate()) {
    slice.gate = token_slice(from.gate, first, count);
  }
  return slice;
}

/// Carried inputs of some sequences: (sequence, channel, K−1).
template <class Config>
using CarriedInputs = std::vector<typename Config::Element>;

template <class Config>
CarriedInputs<Config> random_carried(std::int64_t sequences, std::int64_t channels, unsigned seed) {
  return random_tensor<typename Config::Element>({1, sequences, channels, Config::kernel_width - 1}, seed).values;
}

template <class Config>
struct ConvolutionResults {
  Tensor<typename Config::Element> output;
  CarriedInputs<Config> states;
};

struct ExpectedConvolution {
  std::vector<double> output;
  std::vector<double> states;
};

/// The oracle's outputs and states for the same problem, in double. Rows that belong to no sequence are 0.
template <class Config>
ExpectedConvolution expected_convolution(const ConvolutionProblem<Config>& problem,
                                         const CarriedInputs<Config>& initial = {}) {
  using Double = InDouble<Config>;
  using Format = StateFormatOf<Double>;
  const std::int64_t slots = problem.sequence_count();
  auto input = converted<double>(problem.input);
  auto gate = converted<double>(problem.gate);
  auto output = zero_tensor<double>(problem.input.shape);
  std::vector<double> initial_states;
  for (const auto number : initial) {
    initial_states.push_back(convert<double>(number));
  }
  std::vector<double> final_states(static_cast<std::size_t>(slots * problem.channels() * Format::head_elements));
  PrefillArgs<Double> args;
  args.input = view_of(input);
  if (problem.has_gate()) {
    args.gate = view_of(gate);
  }
  args.output = view_of(output);
  args.weight = problem.weight.data();
  args.bias = problem.bias.empty() ? nullptr : problem.bias.data();
  args.sequences = view_of(problem.sequences);
  if (!initial.empty()) {
    args.initial_state = {view_pool<Format>(initial_states.data(), slots, problem.channels())};
  }
  args.final_state = {view_pool<Format>(final_states.data(), slots, problem.channels())};
  reference::prefill(args);
  return {output.values, final_states};
}

/// What the operations read, in a backend's memory. `halves`: input and gate are parts of one projection [u, g].
template <class Backend, class Config>
class PlacedConvolution {
 public:
  using E = typename Config::Element;

  PlacedConvolution(const ConvolutionProblem<Config>& problem, Layout layout, bool halves = false)
      : has_gate_(problem.has_gate()),
        has_bias_(!problem.bias.empty()),
        halves_(halves && has_gate_),
        channels_(problem.channels()),
        output_(problem.input.shape, layout),
        weight_(problem.weight),
        bias_(problem.bias),
        sequences_(problem.sequences) {
    if (halves_) {
      Tensor<E> both{{problem.input.shape.batch, problem.input.shape.tokens, 2, channels_}, {}};
      both.values.resize(element_count(both.shape));
      for (std::int64_t b = 0; b < both.shape.batch; ++b) {
        for (std::int64_t t = 0; t < both.shape.tokens; ++t) {
          for (std::int64_t c = 0; c < channels_; ++c) {
            both.at(b, t, 0, c) = problem.input.at(b, t, 0, c);
            both.at(b, t, 1, c) = problem.gate.at(b, t, 0, c);
          }
        }
      }
      input_ = Placed<Backend, E>(both, layout);
    } else {
      input_ = Placed<Backend, E>(problem.input, layout);
      if (has_gate_) {
        gate_ = Placed<Backend, E>(problem.gate, layout);
      }
    }
  }

  template <class Args>
  Args args() {
    Args args;
    args.input = halves_ ? input_.view().slice_heads(0, 1) : input_.view();
    if (has_gate_) {
      args.gate = halves_ ? input_.view().slice_heads(1, 1) : gate_.view();
    }
    if constexpr (requires { args.output; }) {
      args.output = output_.view();
    }
    args.weight = weight_.data();
    args.bias = has_bias_ ? bias_.data() : nullptr;
    return args;
  }
  Sequences sequences() { return sequences_.view(); }

  /// The outputs; nothing around them may have been touched.
  Tensor<E> output() const {
    CHECK(output_.surroundings_intact());
    return output_.read();
  }

 private:
  bool has_gate_;
  bool has_bias_;
  bool halves_;
  std::int64_t channels_;
  Placed<Backend, E> input_;
  Placed<Backend, E> gate_;
  Placed<Backend, E> output_;
  typename Backend::template Array<typename Config::Weight> weight_;
  typename Backend::template Array<typename Config::Weight> bias_;
  PlacedSequences<Backend> sequences_;
};

struct ConvolutionOptions {
  Layout layout = Layout::bthd;
  bool halves = false;    ///< input and gate are one projection
  bool in_place = false;  ///< final states go to the initial ones' slots
  std::vector<std::uint8_t> has_initial_state{};
};

/// Prefill from `initial` (one slot per sequence; empty: none) on `Backend`.
template <class Backend, class Config>
ConvolutionResults<Config> run_convolution(const ConvolutionProblem<Config>& problem,
                                           const CarriedInputs<Config>& initial = {},
                                           const ConvolutionOptions& options = {}) {
  using E = typename Config::Element;
  using Format = StateFormatOf<Config>;
  const std::int64_t slots = problem.sequence_count();
  const std::int64_t channels = problem.channels();
  PlacedConvolution<Backend, Config> placed(problem, options.layout, options.halves);
  typename Backend::template Array<E> initial_states(initial);
  typename Backend::template Array<E> final_states(
      CarriedInputs<Config>(static_cast<std::size_t>(slots * channels * Format::head_elements), poison<E>()));
  typename Backend::template Array<std::uint8_t> has_initial(options.has_initial_state);
  auto args = placed.template args<PrefillArgs<Config>>();
  args.sequences = placed.sequences();
  if (!initial.empty()) {
    args.initial_state = {view_pool<Format>(initial_states.data(), slots, channels)};
  }
  if (!options.has_initial_state.empty()) {
    args.has_initial_state = has_initial.data();
  }
  args.final_state =
      options.in_place ? args.initial_state : StateSlots<Format>{view_pool<Format>(final_states.data(), slots, channels)};
  JRT_REQUIRE_OK(prefill(args, Backend::execution()));
  return {placed.output(), options.in_place ? initial_states.read() : final_states.read()};
}

/// Steps through all tokens of the problem, `width` at a time, updating `states` in place; the outputs of all steps.
template <class Backend, class Config>
Tensor<typename Config::Element> run_convolution_steps(const ConvolutionProblem<Config>& problem,
                                                       CarriedInputs<Config>& states, std::int64_t width = 1,
                                                       Layout layout = Layout::bthd) {
  using E = typename Config::Element;
  using Format = StateFormatOf<Config>;
  const std::int64_t batch = problem.input.shape.batch;
  Tensor<E> outputs{{batch, 0, 1, problem.channels()}, {}};
  typename Backend::template Array<E> pool(states);
  for (std::int64_t t = 0; t < problem.input.shape.tokens; t += width) {
    PlacedConvolution<Backend, Config> placed(token_slice(problem, t, std::min(width, problem.input.shape.tokens - t)),
                                              layout);
    auto args = placed.template args<DecodeArgs<Config>>();
    args.source = {view_pool<Format>(pool.data(), batch, problem.channels())};
    JRT_REQUIRE_OK(decode_step(args, Backend::execution()));
    outputs = joined_tokens(outputs, placed.output());
  }
  states = pool.read();
  return outputs;
}

}  // namespace jrt::test
