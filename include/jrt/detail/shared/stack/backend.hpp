// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include "jrt/backward.hpp"
#include "jrt/decode.hpp"
#include "jrt/detail/backend.hpp"
#include "jrt/detail/check/mixer.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/mixer/stack.hpp"
#include "jrt/prefill.hpp"
#include "jrt/status.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail {

/// The arguments of one layer, with the sequences and states of the stack's arguments.
template <int layer, class... Layers>
auto layer_args(const PrefillArgs<Stack<Layers...>>& args) {
  auto of_layer = std::get<static_cast<std::size_t>(layer)>(args.layers);
  of_layer.sequences = args.sequences;
  of_layer.initial_state = layer_slots<layer>(args.initial_state);
  of_layer.final_state = layer_slots<layer>(args.final_state);
  of_layer.has_initial_state = args.has_initial_state;
  return of_layer;
}
template <int layer, class... Layers>
auto layer_args(const BackwardArgs<Stack<Layers...>>& args) {
  auto of_layer = std::get<static_cast<std::size_t>(layer)>(args.layers);
  of_layer.sequences = args.sequences;
  of_layer.initial_state = layer_slots<layer>(args.initial_state);
  if constexpr (requires { of_layer.has_initial_state; }) {
    of_layer.has_initial_state = args.has_initial_state;
  }
  return of_layer;
}
template <int layer, class Args>
auto positioned_layer(const Args& args) {
  auto of_layer = std::get<static_cast<std::size_t>(layer)>(args.layers);
  if constexpr (requires { of_layer.first_positions; }) {
    of_layer.first_positions = args.first_positions;
  }
  return of_layer;
}
template <int layer, class... Layers>
auto layer_args(const DecodeArgs<Stack<Layers...>>& args) {
  auto of_layer = positioned_layer<layer>(args);
  of_layer.source = layer_slots<layer>(args.source);
  of_layer.destination = layer_slots<layer>(args.destination);
  return of_layer;
}
template <int layer, class... Layers>
auto layer_args(const StagedStepArgs<Stack<Layers...>>& args) {
  auto of_layer = positioned_layer<layer>(args);
  of_layer.state = layer_slots<layer>(args.state);
  of_layer.staging = args.staging.template view<layer>();
  of_layer.already_staged = args.already_staged;
  return of_layer;
}
template <int layer, class... Layers>
auto layer_args(const CommitArgs<Stack<Layers...>>& args) {
  auto of_layer = positioned_layer<layer>(args);
  of_layer.staging = args.staging.template view<layer>();
  of_layer.accepted_tokens = args.accepted_tokens;
  of_layer.source = layer_slots<layer>(args.source);
  of_layer.destination = layer_slots<layer>(args.destination);
  return of_layer;
}

/// The order in which layers are worked on.
enum class LayerOrder { first_to_last, last_to_first };

/// `function(std::integral_constant<int, i>)` for i = 0 … count − 1, or from the last on, until one fails; the layer's
/// number is put before the failure's message.
template <int count, LayerOrder order = LayerOrder::first_to_last, class Function>
Status for_layers(const Function& function) {
  Status status;
  const auto step = [&](auto layer) {
    if (status.ok()) {
      const Status of_layer = function(layer);
      if (!of_layer.ok()) {
        status = Status::error(of_layer.code(), "layer %d: %s", decltype(layer)::value, of_layer.c_str());
      }
    }
  };
  [&]<int... layer>(std::integer_sequence<int, layer...>) {
    (step(std::integral_constant < int, order == LayerOrder::first_to_last ? layer : count - 1 - layer > {}), ...);
  }
  (std::make_integer_sequence<int, count>{});
  return status;
}

template <class Args>
inline constexpr bool runs_backward = false;
template <class Config>
inline constexpr bool runs_backward<BackwardArgs<Config>> = true;
template <class Args>
inline constexpr LayerOrder order_of = runs_backward<Args> ? LayerOrder::last_to_first : LayerOrder::first_to_last;

/// All operations of a stack: check every layer, then run them in turn with one workspace.
template <class... Layers, class Execution>
struct MixerBackend<Stack<Layers...>, Execution> {
  using Whole = Stack<Layers...>;
  template <int layer>
  using Layer = MixerBackend<typename Whole::template ConfigAt<layer>, Execution>;

  template <class Args>
  static std::size_t workspace_bytes(const Args& args, const Execution& on) {
    std::size_t bytes = 0;
    [&]<int... layer>(std::integer_sequence<int, layer...>) {
      ((bytes = larger(bytes, Layer<layer>::workspace_bytes(layer_args<layer>(args), on))), ...);
    }
    (std::make_integer_sequence<int, Whole::layers>{});
    return bytes;
  }

  template <class Args>
  static Status check(const Args& args) {
    Checker check(operation_name(args));
    check.take(check_whole(args));
    check.take(check_layers(args));
    return check.status();
  }

  /// Checks the pools of whole states, and that all layers have the same tokens.
  template <class Args>
  static Status check_whole(const Args& args) {
    Checker check(operation_name(args));
    if constexpr (runs_backward<Args>) {
      check_state(check, "initial_state", args.initial_state, 1);
    } else if constexpr (requires { args.final_state; }) {
      check_prefill_states(check, args, 1);
    } else if constexpr (requires { args.state; }) {
      check.pool("state", args.state.pool, 1);
    } else {
      check_step_states(check, args, 1);
    }
    if constexpr (requires { args.accepted_tokens; }) {
      check.given("staging", staging_given(args.staging), "tokens", 1, "the least that is of use");
    }
    if constexpr (runs_backward<Args>) {
      check_same_tokens(check, "output_gradient", args, [](const auto& layer) { return layer.output_gradient; });
    } else if constexpr (requires { std::get<0>(args.layers).output; }) {
      check_same_tokens(check, "output", args, [](const auto& layer) { return layer.output; });
    }
    return check.status();
  }

  /// `view_of(layer's arguments)` of every layer has the tokens of the first one's.
  template <class Args, class ViewOf>
  static void check_same_tokens(Checker& check, const char* argument, const Args& args, const ViewOf& view_of) {
    const auto first = view_of(std::get<0>(args.layers));
    check.take(for_layers<Whole::layers>([&](auto layer) {
      Checker of_layer(operation_name(args));
      if (Checker::is_given(first)) {  // layer 0's own check reports otherwise
        const auto view = view_of(std::get<static_cast<std::size_t>(decltype(layer)::value)>(args.layers));
        of_layer.given(argument, view, "tokens", first.tokens, "layer 0's");
        of_layer.equal(argument, "batch", view.batch, first.batch, "layer 0's");
        of_layer.equal(argument, "tokens", view.tokens, first.tokens, "layer 0's");
      }
      return of_layer.status();
    }));
  }

  template <class Args>
  static Status check_layers(const Args& args) {
    return for_layers<Whole::layers>([&](auto layer) {
      constexpr int index = decltype(layer)::value;
      return Layer<index>::check(layer_args<index>(args));
    });
  }

  template <class Args, class BeforeLayer>
  static Status run(const Args& args, const BeforeLayer& before_layer, const Workspace& workspace, const Execution& on) {
    Checker checker(operation_name(args));
    checker.take(check(args));
    checker.workspace(workspace, checker.ok() ? workspace_bytes(args, on) : 0);
    if (!checker.ok()) {
      return checker.status();
    }
    return for_layers<Whole::layers, order_of<Args>>([&](auto layer) {
      constexpr int index = decltype(layer)::value;
      const Status before = before_layer(index);
      return before.ok() ? Layer<index>::run(layer_args<index>(args), workspace, on) : before;
    });
  }

  template <class Args>
  static Status run(const Args& args, const Workspace& workspace, const Execution& on) {
    return run(
        args, [](int /*layer*/) { return Status{}; }, workspace, on);
  }
};

}  // namespace jrt::detail
