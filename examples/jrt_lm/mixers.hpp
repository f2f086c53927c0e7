// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <jrt/sequences.hpp>
#include <jrt/tensor_view.hpp>
#include <jrt/workspace.hpp>
#include <memory>
#include <span>

#include "jrt_lm/model_config.hpp"

/// The library's mixers behind virtual functions: a model is compiled once for each device and type of number, and its
/// kernels once for each shape, by files of their own (compiled_mixers.hpp). Errors are std::runtime_error.
namespace jrt_lm {

/// States of one layer: slot i at `data + i * slot_stride` bytes, and where the sequences of a call have theirs.
struct LayerSlots {
  std::byte* data = nullptr;
  std::int64_t count = 0;
  std::int64_t slot_stride = 0;
  std::int64_t heads = 0;  ///< key/value heads or channels
  const std::int32_t* slots = nullptr;

  /// Slot `slot` alone, for operations without an array of slots.
  [[nodiscard]] LayerSlots only(std::int64_t slot) const { return {data + slot * slot_stride, 1, slot_stride, heads}; }
};

/// Sequences of a call, their states, and memory for it.
struct MixerCall {
  bool is_step = false;
  jrt::Sequences sequences{};               ///< of prompts
  const std::uint8_t* continues = nullptr;  ///< of prompts
  LayerSlots states{};
  std::function<jrt::Workspace(std::size_t bytes)> workspace{};
};

template <class Element>
struct ConvolutionTensors {
  jrt::TensorView<const Element> input{};
  jrt::TensorView<const Element> gate{};
  jrt::TensorView<Element> output{};
  const Element* weight = nullptr;
  const Element* bias = nullptr;
};

template <class Element>
struct LinearTensors {
  jrt::TensorView<const Element> query{};
  jrt::TensorView<const Element> key{};
  jrt::TensorView<const Element> value{};
  jrt::TensorView<const Element> key_encoder{};  ///< of prompts, as the next
  jrt::TensorView<const Element> value_encoder{};
  jrt::TensorView<Element> output{};
};

template <class Element>
struct WindowTensors {
  jrt::TensorView<const Element> query{};
  jrt::TensorView<const Element> key{};
  jrt::TensorView<const Element> value{};
  jrt::TensorView<Element> output{};
  double scale = 0;
};

/// What can be done with a mixer's states.
template <class Execution>
class MixerStates {
 public:
  MixerStates() = default;
  MixerStates(const MixerStates&) = delete;
  MixerStates& operator=(const MixerStates&) = delete;
  virtual ~MixerStates() = default;

  [[nodiscard]] virtual std::int64_t slot_bytes(std::int64_t heads) const = 0;
  /// Of one state, as jrt::save_states writes it.
  [[nodiscard]] virtual std::size_t saved_bytes(std::int64_t heads) const = 0;
  /// The first slot of each.
  virtual void copy(const LayerSlots& from, const LayerSlots& to, const Execution& on) const = 0;
  virtual void save(const LayerSlots& from, std::span<std::byte> to, const Execution& on) const = 0;
  virtual void load(std::span<const std::byte> from, const LayerSlots& to, const Execution& on) const = 0;
  /// Whether a state counts the tokens that it has seen, and how many these are in a saved one that has been loaded.
  [[nodiscard]] virtual bool counts_tokens() const = 0;
  [[nodiscard]] virtual std::int64_t tokens_seen(std::span<const std::byte> saved) const = 0;
};

/// A mixer: prompts or a step on the states of one layer.
template <class Execution, class Tensors>
class Mixer : public MixerStates<Execution> {
 public:
  virtual void run(const Tensors& tensors, const MixerCall& call, const Execution& on) const = 0;
};

/// Rotary position embedding.
template <class Execution, class Element>
class Rotation {
 public:
  Rotation() = default;
  Rotation(const Rotation&) = delete;
  Rotation& operator=(const Rotation&) = delete;
  virtual ~Rotation() = default;

  /// Turns `heads` heads of each row by the row's position.
  virtual void rotate(const std::int32_t* positions, std::int64_t rows, Element* x, std::int64_t columns,
                      std::int64_t heads, const Execution& on) const = 0;
};

/// All that a model needs of its kernels.
template <class Execution, class Element>
struct Mixers {
  std::unique_ptr<const Mixer<Execution, ConvolutionTensors<Element>>> convolution;
  std::unique_ptr<const Mixer<Execution, LinearTensors<Element>>> linear;
  std::unique_ptr<const Mixer<Execution, WindowTensors<Element>>> window;
  std::unique_ptr<const Rotation<Execution, Element>> rotation;
  KernelShape shape;

  [[nodiscard]] const MixerStates<Execution>& states_of(MixerKind kind) const {
    switch (kind) {
      case MixerKind::convolution:
        return *convolution;
      case MixerKind::linear:
        return *linear;
      default:
        return *window;
    }
  }
};

}  // namespace jrt_lm
