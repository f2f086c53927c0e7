// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <jrt/mixer/stack.hpp>
#include <tuple>
#include <utility>
#include <vector>

#include "support/configs.hpp"
#include "support/convolution_problem.hpp"
#include "support/linear_problem.hpp"
#include "support/window_problem.hpp"

/// Inputs of a stack with every kind of mixer, and functions that place them and run its operations on a backend.
namespace jrt::test {

template <class E>
struct Composed {
  using Short = GatedConvolution<E, 3>;
  using Global = Prefix<E, 16, 24>;
  using Local = Turned<E, 16, 7>;
  using Wide = GatedConvolution<E, 5>;
  using Whole = Stack<Layer<Short, 20>, Layer<Global, 3>, Layer<Local, 2>, Layer<Wide, 33>>;
};

template <class E>
struct StackProblem {
  using Types = Composed<E>;
  using Whole = typename Types::Whole;

  ConvolutionProblem<typename Types::Short> first;
  Problem<typename Types::Global> global;
  WindowProblem<typename Types::Local> local;
  ConvolutionProblem<typename Types::Wide> last;

  StackProblem() = default;
  StackProblem(std::int64_t batch, std::int64_t tokens, std::int64_t prefix, unsigned seed = 1)
      : first({.batch = batch, .tokens = tokens, .channels = 20}, seed),
        global({.batch = batch, .tokens = tokens, .prefix = prefix, .heads = 3, .query_heads = 3}, seed + 10),
        local({.batch = batch, .tokens = tokens, .heads = 2, .query_heads = 4}, seed + 20),
        last({.batch = batch, .tokens = tokens, .channels = 33, .has_gate = false}, seed + 30) {}

  [[nodiscard]] std::int64_t batch() const { return first.input.shape.batch; }
  [[nodiscard]] std::int64_t tokens() const { return first.input.shape.tokens; }

  /// Tokens [begin, begin + count); the encoder stays with the first.
  [[nodiscard]] StackProblem piece(std::int64_t begin, std::int64_t count) const {
    StackProblem part;
    part.first = token_slice(first, begin, count);
    part.global = global;
    part.global.query = token_slice(global.query, begin, count);
    part.global.key = token_slice(global.key, begin, count);
    part.global.value = token_slice(global.value, begin, count);
    if (begin > 0) {
      part.global.key_encoder = token_slice(global.key_encoder, 0, 0);
      part.global.value_encoder = token_slice(global.value_encoder, 0, 0);
    }
    part.local = local.piece(begin, count);
    part.last = token_slice(last, begin, count);
    return part;
  }
};

/// The outputs of all layers.
template <class E>
struct StackOutputs {
  Tensor<E> first;
  Tensor<E> global;
  Tensor<E> local;
  Tensor<E> last;

  friend bool operator==(const StackOutputs&, const StackOutputs&) = default;
};

template <class E>
StackOutputs<E> joined(const StackOutputs<E>& a, const StackOutputs<E>& b) {
  return {joined_tokens(a.first, b.first), joined_tokens(a.global, b.global), joined_tokens(a.local, b.local),
          joined_tokens(a.last, b.last)};
}

template <class E>
double largest_error(const StackOutputs<E>& a, const StackOutputs<E>& b) {
  const auto error = [](const Tensor<E>& x, const Tensor<E>& y) { return relative_error(x.values, y.values); };
  return std::max({error(a.first, b.first), error(a.global, b.global), error(a.local, b.local), error(a.last, b.last)});
}

/// A stack's tensors in a backend's memory.
template <class Backend, class E>
struct PlacedStack {
  using Types = Composed<E>;
  using Whole = typename Types::Whole;

  template <class Config>
  struct PlacedConvolution {
    Placed<Backend, E> input;
    Placed<Backend, E> gate;
    Placed<Backend, E> output;
    typename Backend::template Array<typename Config::Weight> weight;
    typename Backend::template Array<typename Config::Weight> bias;
    bool has_gate;

    explicit PlacedConvolution(const ConvolutionProblem<Config>& problem)
        : input(problem.input, Layout::packed),
          gate(problem.has_gate() ? Placed<Backend, E>(problem.gate, Layout::spaced) : Placed<Backend, E>()),
          output(problem.input.shape, Layout::bthd),
          weight(problem.weight),
          bias(problem.bias),
          has_gate(problem.has_gate()) {}

    template <class Args>
    void fill(Args& args) {
      args.input = input.view();
      if (has_gate) {
        args.gate = gate.view();
      }
      args.output = output.view();
      args.weight = weight.data();
      args.bias = bias.data();
    }
  };

  PlacedConvolution<typename Types::Short> first;
  Placed<Backend, E> query;
  Placed<Backend, E> key;
  Placed<Backend, E> value;
  Placed<Backend, E> key_encoder;
  Placed<Backend, E> value_encoder;
  Placed<Backend, E> output;
  PlacedWindow<Backend, typename Types::Local> local;
  PlacedConvolution<typename Types::Wide> last;

  explicit PlacedStack(const StackProblem<E>& problem)
      : first(problem.first),
        query(problem.global.query, Layout::bhtd),
        key(problem.global.key, Layout::bthd),
        value(problem.global.value, Layout::packed),
        key_encoder(problem.global.key_encoder, Layout::bthd),
        value_encoder(problem.global.value_encoder, Layout::spaced),
        output(problem.global.output_shape(), Layout::spaced),
        local(problem.local),
        last(problem.last) {}

  /// `ArgsOf<Whole>` with every layer's tensors.
  template <template <class> class ArgsOf>
  ArgsOf<Whole> args() {
    ArgsOf<Whole> args;
    first.fill(std::get<0>(args.layers));
    auto& global = std::get<1>(args.layers);
    global.query = query.view();
    global.key = key.view();
    global.value = value.view();
    global.output = output.view();
    if constexpr (requires { global.key_encoder; }) {
      global.key_encoder = key_encoder.view();
      global.value_encoder = value_encoder.view();
    }
    std::get<2>(args.layers) = local.template args<ArgsOf<typename Types::Local>>();
    last.fill(std::get<3>(args.layers));
    return args;
  }

  StackOutputs<E> outputs() const {
    CHECK(output.surroundings_intact());
    return {first.output.read(), output.read(), local.output.read(), last.output.read()};
  }
};

/// A pool of whole states in a backend's memory, with a gap behind every slot, and lists of its slots.
template <class Backend, class E>
class StackStates {
 public:
  using Whole = typename Composed<E>::Whole;

  explicit StackStates(std::int64_t slots, std::uint64_t content = 0)
      : memory_(std::vector<std::uint64_t>(static_cast<std::size_t>(slots * stride), content)), slots_(slots) {}

  StateSlots<Whole> all() { return {{memory_.data(), slots_, 1, stride}}; }
  StateSlots<Whole> at(std::vector<std::int32_t> slots) {
    lists_.emplace_back(std::move(slots));
    return {all().pool, lists_.back().data()};
  }

  /// The bytes of a slot that are part of a state, by way of `save_states`.
  std::vector<std::byte> saved(std::int32_t slot) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(saved_states_bytes<Whole>(1, 1)));
    JRT_REQUIRE_OK(save_states(at({slot}), 1, std::span<std::byte>(bytes), Backend::execution()));
    static_cast<void>(memory_.read());  // waits
    return bytes;
  }

  /// A layer's part of a slot, copied to a pool of its own.
  template <int layer>
  std::vector<typename LayerFormat<layer, Whole>::Scalar> layer_state(std::int32_t slot) {
    using Format = LayerFormat<layer, Whole>;
    constexpr std::int64_t heads = Whole::template LayerAt<layer>::heads;
    using Scalar = typename Format::Scalar;
    typename Backend::template Array<Scalar> copy(
        std::vector<Scalar>(static_cast<std::size_t>(heads * Format::head_elements)));
    JRT_REQUIRE_OK(copy_states(layer_slots<layer>(at({slot})), StateSlots<Format>{view_pool<Format>(copy.data(), 1, heads)},
                               1, Backend::execution()));
    return copy.read();
  }

 private:
  static constexpr std::int64_t stride = Whole::head_elements + 6;

  typename Backend::template Array<std::uint64_t> memory_;
  std::int64_t slots_;
  std::vector<typename Backend::template Array<std::int32_t>> lists_;
};

template <class Backend, class E>
StackOutputs<E> run_stack(const StackProblem<E>& problem, const StateSlots<typename Composed<E>::Whole>& initial,
                          const StateSlots<typename Composed<E>::Whole>& final) {
  PlacedStack<Backend, E> placed(problem);
  auto args = placed.template args<PrefillArgs>();
  args.initial_state = initial;
  args.final_state = final;
  JRT_REQUIRE_OK(prefill(args, Backend::execution()));
  return placed.outputs();
}

template <class Backend, class E>
StackOutputs<E> step_stack(const StackProblem<E>& problem, const StateSlots<typename Composed<E>::Whole>& states) {
  PlacedStack<Backend, E> placed(problem);
  auto args = placed.template args<DecodeArgs>();
  args.source = states;
  JRT_REQUIRE_OK(decode_step(args, Backend::execution()));
  return placed.outputs();
}

}  // namespace jrt::test
