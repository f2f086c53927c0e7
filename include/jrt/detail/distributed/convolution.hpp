// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/backward.hpp"
#include "jrt/detail/distributed/check.hpp"
#include "jrt/detail/distributed/halo.hpp"
#include "jrt/detail/distributed/halo_plan.hpp"
#include "jrt/detail/distributed/halo_prefill.hpp"
#include "jrt/distributed/context_parallel.hpp"
#include "jrt/mixer/gated_convolution.hpp"
#include "jrt/prefill.hpp"
#include "jrt/state_operations.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail {

/// The inputs before a rank's pieces, and the states that they leave, of halo i in slot i.
template <class Config, class Execution>
class CarriedInputs {
 public:
  using Element = typename Config::Element;
  using Weight = typename Config::Weight;
  using Format = StateFormatOf<Config>;
  using Inputs = RowTensors<const Element>;

  CarriedInputs(const HaloPlan& plan, const TensorView<const Element>& input, const Weight* weight, const Weight* bias,
                const Execution& on)
      : plan_(plan), local_{input, {}}, weight_(weight), bias_(bias), on_(on), exchange_(plan, local_, on) {}

  void take(Arena& arena) {
    exchange_.take(arena);
    const std::int64_t channels = local_.first.dim;
    states_ = view_pool<Format>(arena.take<typename Format::Scalar>(plan_.halos * channels * Format::head_elements),
                                plan_.halos, channels);
    halos_ = exchange_.take_halos(arena);
    output_ = view_bthd(arena.take<Element>(plan_.halo_rows * channels), {.tokens = plan_.halo_rows, .dim = channels});
    workspace_.bytes = plan_.halos == 0 ? 0 : prefill_workspace_bytes(halo_args(), on_);
    workspace_.data = arena.take<std::byte>(static_cast<std::int64_t>(workspace_.bytes));
  }

  [[nodiscard]] const StatePoolView<Format>& states() const { return states_; }
  [[nodiscard]] const RowTensors<Element>& halos() const { return halos_; }
  [[nodiscard]] const HaloExchange<Element, Execution>& exchange() const { return exchange_; }

  /// Called by all ranks.
  template <class C>
  Status receive(C& communicator, const Execution& on) const {
    const Status status = exchange_.halos(local_, halos_, communicator, on);
    return status.ok() && plan_.halos > 0 ? prefill(halo_args(), workspace_, on) : status;
  }

 private:
  [[nodiscard]] PrefillArgs<Config> halo_args() const {
    PrefillArgs<Config> args;
    args.input = halos_.first;
    args.output = output_;
    args.weight = weight_;
    args.bias = bias_;
    args.sequences = halo_sequences(plan_, halo_offsets);
    args.final_state = {states_};
    return args;
  }

  const HaloPlan& plan_;
  Inputs local_;
  const Weight* weight_;
  const Weight* bias_;
  const Execution& on_;
  HaloExchange<Element, Execution> exchange_;
  StatePoolView<Format> states_;
  RowTensors<Element> halos_;
  TensorView<Element> output_;
  Workspace workspace_;
};

/// Without the inputs of other ranks, which enter the first K−1 tokens alone.
template <class Config, class Execution>
class ConvolutionContextPrefill : public HaloPrefill<ConvolutionContextPrefill<Config, Execution>, Config, Execution,
                                                     CarriedInputs<Config, Execution>> {
  using Base = HaloPrefill<ConvolutionContextPrefill, Config, Execution, CarriedInputs<Config, Execution>>;

 public:
  ConvolutionContextPrefill(const ContextPrefillArgs<Config>& args, const Execution& on)
      : Base(args, on, args.local.input, args.local.weight, args.local.bias) {}

  static void check(Checker& check, const PrefillArgs<Config>& local, const HaloPlan& plan) {
    check_no_sequences(check, local.sequences, local.has_initial_state);
    check_piece(check, "local.input", local.input, plan.tokens);
    check_context_states(check, "local.initial_state", local.initial_state, plan.sequences, plan.reads_initial_state);
    check_context_states(check, "local.final_state", local.final_state, plan.sequences, false);
  }

  static std::int64_t state_heads(const PrefillArgs<Config>& local) { return local.input.dim; }
  static bool leaves_room(const PrefillArgs<Config>& /*local*/) { return true; }
  template <class Part>
  static void slice(PrefillArgs<Config>& args, const Part& part) {
    args.input = part(args.input);
    args.gate = part(args.gate);
    args.output = part(args.output);
  }
  /// A convolution's state has no count.
  [[nodiscard]] Status count_tokens_before(const typename Base::Slots& /*states*/) const { return {}; }
};

/// Gradients of a rank's tokens, whose first sums read the carried inputs; and for each piece that begins inside a sequence
/// those of the edge: halo and first K−1 tokens as one sequence, in which the halo has no outputs. It gives the gradients
/// of the halo's inputs, for the ranks that have them.
template <class Config, class Execution>
class ConvolutionContextBackward {
 public:
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;
  using Slots = StateSlots<Format>;
  using GradientFormat = ConvolutionGradientFormatOf<Config>;
  using Gradients = StateSlots<GradientFormat>;

  ConvolutionContextBackward(const ContextBackwardArgs<Config>& args, const Execution& on)
      : local_(args.local),
        plan_(args.plan->details()),
        on_(on),
        carried_(plan_, args.local.input, args.local.weight, args.local.bias, on) {}

  static void check(Checker& check, const BackwardArgs<Config>& local, const HaloPlan& plan) {
    check_no_sequences(check, local.sequences, local.has_initial_state);
    check_piece(check, "local.input", local.input, plan.tokens);
    check_context_states(check, "local.initial_state", local.initial_state, plan.sequences, plan.reads_initial_state);
    check_context_states(check, "local.final_state_gradient", local.final_state_gradient, plan.sequences, false);
    check_context_states(check, "local.initial_state_gradient", local.initial_state_gradient, plan.sequences, false);
  }
  [[nodiscard]] Status check_inner() const {
    return plan_.pieces == 0 ? Status() : MixerBackend<Config, Execution>::check(piece_args());
  }

  void take(Arena& arena) {
    carried_.take(arena);
    const std::int64_t channels = local_.input.dim;
    states_ = view_pool<Format>(arena.take<typename Format::Scalar>(plan_.pieces * channels * Format::head_elements),
                                plan_.pieces, channels);
    using Scalar = typename GradientFormat::Scalar;
    gradients_ = view_pool<GradientFormat>(
        arena.take<Scalar>((plan_.pieces + 1) * channels * GradientFormat::head_elements), plan_.pieces + 1, channels);
    const auto rows = [&] {
      return view_bthd(arena.take<Element>(plan_.edge_rows * channels), {.tokens = plan_.edge_rows, .dim = channels});
    };
    input_ = rows();
    output_gradient_ = rows();
    input_gradient_ = rows();
    if (local_.gate.data != nullptr) {
      gate_ = rows();
    }
    if (plan_.pieces > 0) {
      inner_.bytes = backward_workspace_bytes(piece_args(), on_);
    }
    if (plan_.halos > 0) {
      inner_.bytes = larger(inner_.bytes, backward_workspace_bytes(edge_args(), on_));
    }
    inner_.data = arena.take<std::byte>(static_cast<std::int64_t>(inner_.bytes));
  }

  template <class C>
  Status run(C& communicator) {
    Status status = overlapped(
        communicator, on_, [&](const Execution& beside) { return carried_.receive(communicator, beside); },
        [&](const Execution&) { return plan_.pieces > 0 ? clear_pieces() : Status(); });
    const auto then = [&](const auto& step) {
      if (status.ok()) {
        status = step();
      }
    };
    if (plan_.pieces > 0) {
      if (plan_.halos > 0) {
        then([&] {
          return copy_states(Slots{carried_.states()}, Slots{states_, plan_.arrays[halo_pieces]}, plan_.halos, on_);
        });
      }
      if (!local_.final_state_gradient.empty()) {
        then([&] {
          return copy_states(local_.final_state_gradient, Gradients{gradients_, plan_.arrays[ending_pieces]},
                             plan_.sequences, on_);
        });
      }
      if (plan_.halos > 0) {
        then([&] { return fill_edges(); });
        then([&] { return backward(edge_args(), inner_, on_); });
        then([&] { return take_from_edges(); });
      }
      then([&] { return backward(piece_args(), inner_, on_); });
      if (!local_.initial_state_gradient.empty()) {
        then([&] {
          return copy_states(Gradients{gradients_, plan_.arrays[initial_pieces]}, local_.initial_state_gradient,
                             plan_.sequences, on_);
        });
      }
    } else {
      then([&] { return zero_weight_gradients(); });
    }
    then([&] {
      return carried_.exchange().gradients(as_input(carried_.halos()), {local_.input_gradient, {}}, communicator);
    });
    return status;
  }

 private:
  using Backend = ContextBackend<Execution>;

  Status clear_pieces() const {
    Status status = clear_states(Slots{states_}, plan_.pieces, on_);
    if (status.ok() && plan_.reads_initial_state) {
      status = copy_states(local_.initial_state, Slots{states_, plan_.arrays[initial_pieces]}, plan_.sequences, on_);
    }
    return status.ok() ? clear_states(Gradients{gradients_}, plan_.pieces + 1, on_) : status;
  }

  [[nodiscard]] BackwardArgs<Config> piece_args() const {
    BackwardArgs<Config> args = local_;
    args.sequences = piece_sequences(plan_);
    args.initial_state = {states_};
    args.final_state_gradient = {gradients_};
    args.initial_state_gradient = {};
    if (!local_.initial_state_gradient.empty()) {
      args.initial_state_gradient = args.final_state_gradient;
    }
    return args;
  }
  [[nodiscard]] BackwardArgs<Config> edge_args() const {
    BackwardArgs<Config> args;
    args.input = input_;
    if (local_.gate.data != nullptr) {
      args.gate = gate_;
    }
    args.weight = local_.weight;
    args.bias = local_.bias;
    args.sequences = halo_sequences(plan_, edge_offsets);
    args.output_gradient = output_gradient_;
    args.final_state_gradient = {gradients_, plan_.arrays[edge_final_pieces]};
    args.input_gradient = input_gradient_;
    return args;
  }

  /// A rank without tokens has no share in the gradients of weights.
  Status zero_weight_gradients() const {
    const auto zero = [&](auto* data, std::int64_t count) {
      using Weight = typename Config::Weight;
      return data == nullptr ? Status() : Backend::fill_rows(view_bthd(data, {.tokens = 1, .dim = count}), Weight{}, on_);
    };
    const Status status = zero(local_.weight_gradient, local_.input.dim * Config::kernel_width);
    return status.ok() ? zero(local_.bias_gradient, local_.input.dim) : status;
  }

  template <class Function>
  Status for_edges(const Function& function) const {
    return for_edges_of(plan_, function);
  }

  [[nodiscard]] Status fill_edges() const {
    return for_edges([&](const HaloPlan::Edge& edge, std::int64_t row, std::int64_t halo_row) {
      Status status =
          Backend::copy_rows(TensorView<const Element>(carried_.halos().first).slice_tokens(halo_row, edge.halo),
                             input_.slice_tokens(row, edge.halo), on_);
      const auto tokens = [&](const TensorView<const Element>& from, const TensorView<Element>& to) {
        if (status.ok()) {
          status = Backend::copy_rows(from.slice_tokens(edge.first, edge.tokens),
                                      to.slice_tokens(row + edge.halo, edge.tokens), on_);
        }
      };
      const auto zero = [&](const TensorView<Element>& to) {
        if (status.ok()) {
          status = Backend::fill_rows(to.slice_tokens(row, edge.halo), Element{}, on_);
        }
      };
      tokens(local_.input, input_);
      zero(output_gradient_);
      tokens(local_.output_gradient, output_gradient_);
      if (local_.gate.data != nullptr) {
        zero(gate_);
        tokens(local_.gate, gate_);
      }
      return status;
    });
  }
  [[nodiscard]] Status take_from_edges() const {
    return for_edges([&](const HaloPlan::Edge& edge, std::int64_t row, std::int64_t halo_row) {
      return Backend::copy_rows(TensorView<const Element>(input_gradient_).slice_tokens(row, edge.halo),
                                carried_.halos().first.slice_tokens(halo_row, edge.halo), on_);
    });
  }

  const BackwardArgs<Config>& local_;
  const HaloPlan& plan_;
  const Execution& on_;
  CarriedInputs<Config, Execution> carried_;
  StatePoolView<Format> states_;
  StatePoolView<GradientFormat> gradients_;
  TensorView<Element> input_;
  TensorView<Element> gate_;
  TensorView<Element> output_gradient_;
  TensorView<Element> input_gradient_;
  Workspace inner_;
};

}  // namespace jrt::detail
