// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

#include "jrt/backward.hpp"
#include "jrt/distributed/communicator.hpp"
#include "jrt/distributed/context_parallel.hpp"
#include "jrt/mixer/stack.hpp"
#include "jrt/prefill.hpp"
#include "jrt/status.hpp"
#include "jrt/workspace.hpp"

/// Context-parallel calls of a stack: its layers one after the other, each with the exchange of its mixer.
namespace jrt {

/// Arguments of a context-parallel prefill of a stack: those of its layers, with their plans (layers of one mixer may share
/// one), and the states of all, by the layout's sequences.
template <class... Layers>
struct ContextPrefillArgs<Stack<Layers...>> {
  std::tuple<ContextPrefillArgs<typename Layers::Config>...> layers{};
  StateSlots<Stack<Layers...>> initial_state{};  ///< replaces those of the layers
  StateSlots<Stack<Layers...>> final_state{};    ///< likewise
};

/// Arguments of a context-parallel backward pass of a stack. Gradients of states are given by layer.
template <class... Layers>
struct ContextBackwardArgs<Stack<Layers...>> {
  std::tuple<ContextBackwardArgs<typename Layers::Config>...> layers{};
};

namespace detail {

/// `function.operator()<i>()` for i = 0 … layers − 1 while its status is ok.
template <int... layer, class Function>
Status for_layers_while_ok(std::integer_sequence<int, layer...> /*layers*/, const Function& function) {
  Status status;
  static_cast<void>(((status = function.template operator()<layer>(), status.ok()) && ...));
  return status;
}

/// The arguments of one layer, with its slice of the states.
template <int layer, class... Layers>
ContextPrefillArgs<typename Stack<Layers...>::template ConfigAt<layer>> context_layer(
    const ContextPrefillArgs<Stack<Layers...>>& args) {
  auto of_layer = std::get<layer>(args.layers);
  of_layer.local.initial_state = layer_slots<layer>(args.initial_state);
  of_layer.local.final_state = layer_slots<layer>(args.final_state);
  return of_layer;
}
template <int layer, class... Layers>
const auto& context_layer(const ContextBackwardArgs<Stack<Layers...>>& args) {
  return std::get<layer>(args.layers);
}

template <class... Layers, class Execution>
struct ContextMixer<Stack<Layers...>, Execution> {
  using Sequence = std::make_integer_sequence<int, Stack<Layers...>::layers>;

  /// One workspace for all layers.
  template <class Args>
  static std::size_t workspace_bytes(const Args& args, const Execution& on) {
    std::size_t bytes = 0;
    static_cast<void>(for_layers_while_ok(Sequence(), [&]<int layer>() {
      using Layer = ContextMixer<typename Stack<Layers...>::template ConfigAt<layer>, Execution>;
      bytes = larger(bytes, Layer::workspace_bytes(context_layer<layer>(args), on));
      return Status();
    }));
    return bytes;
  }
};

}  // namespace detail

/// Runs the context-parallel prefills of all layers in turn; `before_layer(i)` is called before layer i, as in `prefill` of
/// a stack. A failure ends the call; later layers are not run. Each layer's arguments are checked when its turn comes.
template <class... Layers, class BeforeLayer, class C, class Execution>
requires Communicator<C, Execution> Status prefill(const ContextPrefillArgs<Stack<Layers...>>& args,
                                                   const BeforeLayer& before_layer, C& communicator,
                                                   const Workspace& workspace, const Execution& on) {
  constexpr int layers = Stack<Layers...>::layers;
  return detail::for_layers_while_ok(std::make_integer_sequence<int, layers>(), [&]<int layer>() {
    const Status status = before_layer(layer);
    return status.ok() ? prefill(detail::context_layer<layer>(args), communicator, workspace, on) : status;
  });
}

/// Runs the context-parallel backward passes of all layers, the last one first, likewise.
template <class... Layers, class BeforeLayer, class C, class Execution>
requires Communicator<C, Execution> Status backward(const ContextBackwardArgs<Stack<Layers...>>& args,
                                                    const BeforeLayer& before_layer, C& communicator,
                                                    const Workspace& workspace, const Execution& on) {
  constexpr int layers = Stack<Layers...>::layers;
  return detail::for_layers_while_ok(std::make_integer_sequence<int, layers>(), [&]<int index>() {
    constexpr int layer = layers - 1 - index;
    const Status status = before_layer(layer);
    return status.ok() ? backward(detail::context_layer<layer>(args), communicator, workspace, on) : status;
  });
}

}  // namespace jrt
