// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>

#include "jrt/backward.hpp"
#include "jrt/decode.hpp"
#include "jrt/detail/backend.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/prefill.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"
#include "jrt/state_exchange.hpp"
#include "jrt/status.hpp"
#include "jrt/workspace.hpp"

/// Composition: a list of mixers is one type, and so is the decode state of a sequence in all of them.
///
///     using Model = jrt::Stack<jrt::Layer<Convolution, 1024>,   // 1024 channels
///                              jrt::Layer<Global, 16>,          // 16 key/value heads
///                              jrt::Layer<Local, 16>>;
///     jrt::StatePool<Model> pool;                               // or view_pool<Model>(memory of yours, slots, 1)
///     jrt::StatePool<Model>::allocate(slots, 1, pool);
///
/// A stack is the format of its own state, so that `clear_states` (reset), `copy_states` (fork), `save_states` and
/// `load_states` take its pools as they take those of one mixer. `layer_slots<i>` is layer i's slice of them, for that
/// layer's operations; `prefill`, `backward`, `decode_step`, `staged_step` and `commit` with a stack's arguments run all
/// layers.
namespace jrt {

/// A mixer in a stack: its configuration, and its key/value heads or a convolution's channels.
template <class ConfigT, int Heads>
struct Layer {
  static_assert(Heads >= 1, "jrt::Layer: a mixer has at least 1 key/value head or channel.");
  using Config = ConfigT;                                                ///< the mixer's configuration
  using Format = StateFormatOf<Config>;                                  ///< of its state
  static constexpr int heads = Heads;                                    ///< key/value heads, or channels
  static constexpr std::int64_t slot_bytes = Format::slot_bytes(Heads);  ///< of one sequence
};

/// Mixers in the order in which they run. As a state format it has one head, in which the layers' slots follow one another,
/// each at a multiple of 64 bytes.
template <class... Layers>
struct Stack {
  static_assert(sizeof...(Layers) >= 1, "jrt::Stack: a stack has at least one layer.");

  static constexpr int layers = static_cast<int>(sizeof...(Layers));  ///< how many
  /// Layer `layer`, counted from 0.
  template <int layer>
  using LayerAt = std::tuple_element_t<static_cast<std::size_t>(layer), std::tuple<Layers...>>;
  /// Configuration of the mixer of layer `layer`.
  template <int layer>
  using ConfigAt = typename LayerAt<layer>::Config;

  /// Byte offset of layer `layer` in a slot; for `layers`, the bytes of a slot.
  static constexpr std::int64_t layer_offset(int layer) {
    const std::int64_t bytes[] = {Layers::slot_bytes...};
    std::int64_t offset = 0;
    for (int i = 0; i < layer; ++i) {
      offset += detail::round_up<std::int64_t>(bytes[i], 64);
    }
    return offset;
  }

  /// `function.operator()<Layer>(index)` for each layer in turn.
  template <class Function>
  static constexpr void for_layers(const Function& function) {
    int layer = 0;
    (function.template operator()<Layers>(layer++), ...);
  }

  // -- the format ------------------------------------------------------------------------------------------------------

  using Scalar = std::uint64_t;  ///< Only a unit of memory: layers have their own types.
  static constexpr const char* name = "stack";
  static constexpr int input_dim = 0;
  static constexpr int rows = layers;
  static constexpr int columns = 1;
  static constexpr std::size_t alignment = 16;  ///< of pools and their slots, in bytes
  static constexpr std::int64_t head_values = layer_offset(layers) / static_cast<std::int64_t>(sizeof(Scalar));
  static constexpr std::int64_t head_elements = head_values;

  /// Bytes of one slot: the whole decode state of one sequence, constant in the number of tokens.
  static constexpr std::int64_t slot_bytes(std::int64_t heads = 1) { return layer_offset(layers) * heads; }
};

namespace detail {

template <class... Layers>
inline constexpr std::int64_t saved_headers<Stack<Layers...>> = 1 + static_cast<std::int64_t>(sizeof...(Layers));

}  // namespace detail

/// The state format of layer `layer` of a stack.
template <int layer, class Stack>
using LayerFormat = typename Stack::template LayerAt<layer>::Format;

/// Layer `layer`'s slice of all slots of a stack's pool.
template <int layer, class... Layers>
constexpr StatePoolView<LayerFormat<layer, Stack<Layers...>>> layer_pool(const StatePoolView<Stack<Layers...>>& pool) {
  using Whole = Stack<Layers...>;
  using Part = typename Whole::template LayerAt<layer>;
  using Scalar = typename Part::Format::Scalar;
  if (pool.empty()) {
    return {};
  }
  auto* const bytes = reinterpret_cast<std::byte*>(pool.data) + Whole::layer_offset(layer);
  const std::int64_t stride_bytes = pool.slot_stride * static_cast<std::int64_t>(sizeof(typename Whole::Scalar));
  return {reinterpret_cast<Scalar*>(bytes), pool.slots, Part::heads,
          stride_bytes / static_cast<std::int64_t>(sizeof(Scalar))};
}

/// The same with slot indices, as an argument for operations of the layer's mixer.
template <int layer, class... Layers>
constexpr StateSlots<LayerFormat<layer, Stack<Layers...>>> layer_slots(const StateSlots<Stack<Layers...>>& slots) {
  return {layer_pool<layer>(slots.pool), slots.slots};
}

/// Uncommitted tokens of a batch in all layers of a stack, in the caller's memory, aligned to 16 bytes.
template <class Stack>
struct StackStaging {
  static constexpr std::size_t alignment = 16;  ///< of `data`, in bytes

  std::byte* data = nullptr;   ///< `bytes()` bytes
  std::int64_t sequences = 0;  ///< B
  std::int64_t tokens = 0;     ///< capacity per sequence

  /// Byte offset of layer `layer` in `data`; for `Stack::layers`, the bytes of the whole.
  [[nodiscard]] constexpr std::size_t layer_offset(int layer) const {
    std::size_t offset = 0;
    Stack::for_layers([&]<class Layer>(int i) {
      if (i < layer) {
        const StagingView<typename Layer::Config> view{nullptr, sequences, tokens, Layer::heads};
        offset += detail::round_up(view.bytes(), alignment);
      }
    });
    return offset;
  }
  /// Bytes of the buffer for these sequences and tokens.
  [[nodiscard]] constexpr std::size_t bytes() const { return layer_offset(Stack::layers); }

  /// The staging buffer of one layer.
  template <int layer>
  [[nodiscard]] StagingView<typename Stack::template ConfigAt<layer>> view() const {
    using Element = typename StagingView<typename Stack::template ConfigAt<layer>>::Element;
    std::byte* const part = data == nullptr ? nullptr : data + layer_offset(layer);
    return {reinterpret_cast<Element*>(part), sequences, tokens, Stack::template LayerAt<layer>::heads};
  }
};

/// Arguments of `prefill` for a stack. Sequences and states are shared by all layers: the ones given here replace those of
/// the layers' own arguments. Tensors and run-time policies are given per layer.
template <class... Layers>
struct PrefillArgs<Stack<Layers...>> {
  using Format = Stack<Layers...>;

  std::tuple<PrefillArgs<typename Layers::Config>...> layers{};  ///< tensors, scales, weights, maps of each
  Sequences sequences{};                                         ///< prefixes apply to layers with an encoder
  StateSlots<Format> initial_state{};                            ///< if omitted, sequences start empty
  StateSlots<Format> final_state{};                              ///< dropped if omitted
  const std::uint8_t* has_initial_state = nullptr;               ///< (B), 0 where the slot's content is to be ignored
};

/// Arguments of `backward` for a stack. Sequences and initial states are shared by all layers; tensors, and the gradients
/// of states that enter and leave, are given per layer. A layer that cannot differentiate through an initial state says so.
template <class... Layers>
struct BackwardArgs<Stack<Layers...>> {
  using Format = Stack<Layers...>;

  std::tuple<BackwardArgs<typename Layers::Config>...> layers{};  ///< tensors, gradients, scales, weights, maps of each
  Sequences sequences{};                                          ///< prefixes apply to layers with an encoder
  StateSlots<Format> initial_state{};                             ///< if omitted, sequences started empty
  const std::uint8_t* has_initial_state = nullptr;                ///< (B), 0 where the slot's content is to be ignored
};

/// Arguments of `decode_step` for a stack.
template <class... Layers>
struct DecodeArgs<Stack<Layers...>> {
  using Format = Stack<Layers...>;

  std::tuple<DecodeArgs<typename Layers::Config>...> layers{};  ///< tensors, scales, weights, maps of each
  StateSlots<Format> source{};                                  ///< the states read; required
  StateSlots<Format> destination{};                             ///< receives the new states; defaults to `source`
  const std::int32_t* first_positions = nullptr;                ///< (B) tokens before, for maps that need the position
};

/// Arguments of `staged_step` for a stack.
template <class... Layers>
struct StagedStepArgs<Stack<Layers...>> {
  using Format = Stack<Layers...>;

  std::tuple<StagedStepArgs<typename Layers::Config>...> layers{};  ///< tensors, scales, weights, maps of each
  StateSlots<Format> state{};                                       ///< the committed states; only read
  StackStaging<Format> staging{};                                   ///< receives the T new rows after the staged ones
  std::int64_t already_staged = 0;                                  ///< rows of every sequence since the last commit
  const std::int32_t* first_positions = nullptr;                    ///< (B) committed tokens
};

/// Arguments of `commit` for a stack: the states of all its mixers accept the same tokens.
template <class... Layers>
struct CommitArgs<Stack<Layers...>> {
  using Format = Stack<Layers...>;

  std::tuple<CommitArgs<typename Layers::Config>...> layers{};  ///< maps with run-time data; otherwise nothing
  StackStaging<Format> staging{};                               ///< as the staged steps left it
  const std::int32_t* accepted_tokens = nullptr;                ///< (B) rows to accept, 0 … staging.tokens
  StateSlots<Format> source{};                                  ///< the committed states
  StateSlots<Format> destination{};                             ///< receives the new ones; defaults to `source`
  const std::int32_t* first_positions = nullptr;                ///< as in the staged steps
};

/// Runs the prefills of all layers in turn. `before_layer(i)`, a callable that returns a Status, is called before layer i
/// is enqueued; in it an engine computes (or enqueues) that layer's inputs from the outputs of the one before. A failure
/// ends the call, and later layers are not run. All arguments are checked before the first layer. Otherwise as `prefill` of
/// each mixer; workspace as `prefill_workspace_bytes` says, one for all layers.
template <class... Layers, class BeforeLayer, class Execution>
Status prefill(const PrefillArgs<Stack<Layers...>>& args, const BeforeLayer& before_layer, const Workspace& workspace,
               const Execution& on) {
  return detail::MixerBackend<Stack<Layers...>, Execution>::run(args, before_layer, workspace, on);
}
/// Runs the backward passes of all layers, the last one first. `before_layer(i)` is called before layer i's: in it an
/// engine computes (or enqueues) the gradients of that layer's outputs from those of the inputs of the one after. Otherwise
/// as `prefill`; workspace as `backward_workspace_bytes` says.
template <class... Layers, class BeforeLayer, class Execution>
Status backward(const BackwardArgs<Stack<Layers...>>& args, const BeforeLayer& before_layer, const Workspace& workspace,
                const Execution& on) {
  return detail::MixerBackend<Stack<Layers...>, Execution>::run(args, before_layer, workspace, on);
}
/// Runs the decode steps of all layers in turn, as `prefill`; workspace as `decode_workspace_bytes` says.
template <class... Layers, class BeforeLayer, class Execution>
Status decode_step(const DecodeArgs<Stack<Layers...>>& args, const BeforeLayer& before_layer, const Workspace& workspace,
                   const Execution& on) {
  return detail::MixerBackend<Stack<Layers...>, Execution>::run(args, before_layer, workspace, on);
}
/// Runs the staged steps of all layers in turn, as `prefill`; workspace as `staged_workspace_bytes` says. One `commit`
/// follows.
template <class... Layers, class BeforeLayer, class Execution>
Status staged_step(const StagedStepArgs<Stack<Layers...>>& args, const BeforeLayer& before_layer,
                   const Workspace& workspace, const Execution& on) {
  return detail::MixerBackend<Stack<Layers...>, Execution>::run(args, before_layer, workspace, on);
}

}  // namespace jrt
