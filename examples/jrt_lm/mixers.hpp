// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <jrt/mixer/gated_convolution.hpp>
#include <jrt/mixer/linear_attention.hpp>
#include <jrt/mixer/window_attention.hpp>
#include <jrt/policy/rotary.hpp>
#include <jrt/sequences.hpp>
#include <jrt/tensor_view.hpp>
#include <jrt/workspace.hpp>
#include <memory>
#include <span>

#include "jrt_lm/model_config.hpp"

/// The library's mixers behind virtual functions: a model is compiled once for each device and type of number, and each
/// mixer's kernels once for their dimensions, in a file of their own. Errors are std::runtime_error.
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

/// A mixer of the library. Files that the build writes instantiate it, one each: compiled_mixer.hpp has its body.
template <class Config, class Execution, class Tensors>
std::unique_ptr<const Mixer<Execution, Tensors>> make_mixer();

/// Rotary position embedding.
template <class Device, class Element>
class Rotation {
 public:
  Rotation() = default;
  Rotation(const Rotation&) = delete;
  Rotation& operator=(const Rotation&) = delete;
  virtual ~Rotation() = default;

  /// Turns `heads` heads of each row by the row's position.
  virtual void rotate(Device& device, const std::int32_t* positions, std::int64_t rows, Element* x, std::int64_t columns,
                      std::int64_t heads) const = 0;
};

/// By the device's function for the dimension.
template <class Device, class Element, int head_dim>
class CompiledRotation final : public Rotation<Device, Element> {
 public:
  explicit CompiledRotation(double base) : rotary_(base) {}

  void rotate(Device& device, const std::int32_t* positions, std::int64_t rows, Element* x, std::int64_t columns,
              std::int64_t heads) const override {
    device.rotate(rotary_, positions, rows, x, columns, heads);
  }

 private:
  jrt::RotaryHalves<head_dim> rotary_;
};

/// All that a model needs of its kernels.
template <class Device, class Element>
struct Mixers {
  using Execution = typename Device::Execution;

  std::unique_ptr<const Mixer<Execution, ConvolutionTensors<Element>>> convolution;
  std::unique_ptr<const Mixer<Execution, LinearTensors<Element>>> linear;
  std::unique_ptr<const Mixer<Execution, WindowTensors<Element>>> window;
  std::unique_ptr<const Rotation<Device, Element>> rotation;
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

/// Those of models of these dimensions.
template <class Device, class Element, int feature_dim, int head_dim, int left_window, int kernel_width>
Mixers<Device, Element> mixers_of(const ModelConfig& config) {
  using Execution = typename Device::Execution;
  using Convolution = jrt::GatedConvolution<Element, kernel_width>;
  using Linear = jrt::PrefixLinearAttention<Element, feature_dim, head_dim>;
  using Window = jrt::SlidingWindowAttention<Element, head_dim, left_window>;
  return {make_mixer<Convolution, Execution, ConvolutionTensors<Element>>(),
          make_mixer<Linear, Execution, LinearTensors<Element>>(),
          make_mixer<Window, Execution, WindowTensors<Element>>(),
          std::make_unique<CompiledRotation<Device, Element, head_dim>>(config.rotary_base),
          {feature_dim, head_dim, left_window, kernel_width}};
}

}  // namespace jrt_lm
