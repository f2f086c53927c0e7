// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <jrt/dispatch.hpp>
#include <jrt/mixer/gated_convolution.hpp>
#include <jrt/mixer/linear_attention.hpp>
#include <jrt/mixer/window_attention.hpp>
#include <jrt/numeric.hpp>
#include <jrt/policy/rotary.hpp>
#include <jrt/sequences.hpp>
#include <jrt/tensor_view.hpp>
#include <jrt/workspace.hpp>
#include <memory>
#include <span>
#include <stdexcept>
#include <type_traits>

#include "jrt_lm/model_config.hpp"
#include "jrt_lm/model_weights.hpp"
#include "jrt_lm/ranks.hpp"
#include "jrt_lm/step_kernel.hpp"

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

/// Where one layer keeps the tokens of a staged step (jrt::StagingView): `tokens` of each sequence.
struct LayerStaging {
  std::byte* data = nullptr;
  std::int64_t sequences = 0;
  std::int64_t tokens = 0;
};

/// Sequences of a call, their states, and memory for it.
struct MixerCall {
  bool is_step = false;
  LayerStaging staging{};                   ///< of a staged step, which leaves the states as they are
  jrt::Sequences sequences{};               ///< of prompts
  const std::uint8_t* continues = nullptr;  ///< of prompts
  LayerSlots states{};
  std::function<jrt::Workspace(std::size_t bytes)> workspace{};
};

/// The projection that makes a mixer's inputs: norm(x) Wᵀ + b, of rows of the residual stream.
template <class E>
struct StepProjection {
  const jrt::ComputeType<E>* residual = nullptr;
  std::int64_t rows = 0;
  std::int64_t in = 0;
  const jrt::ComputeType<E>* norm_weight = nullptr;
  double norm_epsilon = 0;
  const E* weight = nullptr;
  const E* bias = nullptr;
  // Of one prompt, whose rows are prepared for the norm (Norm): x times its weights, and their squares. Null in a step.
  const E* normed = nullptr;
  const jrt::ComputeType<E>* squares = nullptr;
  std::int64_t square_parts = 0;
};

template <class E>
struct ConvolutionTensors {
  using Element = E;
  jrt::TensorView<const Element> input{};
  jrt::TensorView<const Element> gate{};
  jrt::TensorView<Element> output{};
  const Element* weight = nullptr;
  const Element* bias = nullptr;
};

template <class E>
struct LinearTensors {
  using Element = E;
  jrt::TensorView<const Element> query{};
  jrt::TensorView<const Element> key{};
  jrt::TensorView<const Element> value{};
  jrt::TensorView<const Element> key_encoder{};  ///< of prompts, as the next
  jrt::TensorView<const Element> value_encoder{};
  jrt::TensorView<Element> output{};
};

template <class E>
struct WindowTensors {
  using Element = E;
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
  /// Of what a staged step keeps of one token.
  [[nodiscard]] virtual std::int64_t staged_bytes(std::int64_t heads) const = 0;
  /// Takes the first `accepted[b]` staged tokens of each sequence into its state. `accepted` is the device's.
  virtual void commit(const MixerCall& call, const std::int32_t* accepted, const Execution& on) const = 0;
};

/// A mixer: prompts or a step on the states of one layer.
template <class Execution, class Tensors>
class Mixer : public MixerStates<Execution> {
 public:
  virtual void run(const Tensors& tensors, const MixerCall& call, const Execution& on) const = 0;
  /// A step, or one prompt, together with the projection that makes its inputs, which need no tensors then; false, and
  /// nothing is done, if there is no kernel for both.
  [[nodiscard]] virtual bool run_projected(const StepProjection<typename Tensors::Element>& projection,
                                           const Tensors& tensors, const MixerCall& call, const Execution& on) const = 0;
  /// A rank's piece of one prompt, whose encoder region is the layout's if the mixer has one.
  virtual void run_piece(const Tensors& tensors, const MixerCall& call, const jrt::ContextLayout& layout,
                         RankLink<Execution>& link, const Execution& on) const = 0;
};

/// A mixer of the library. Files that the build writes instantiate it, one each: compiled_mixer.hpp has its body.
template <class Config, class Execution, class Tensors>
std::unique_ptr<const Mixer<Execution, Tensors>> make_mixer();

/// Rotary position embedding.
template <class Device, class Element>
class Rotation {
 public:
  using Sum = jrt::ComputeType<Element>;

  Rotation() = default;
  Rotation(const Rotation&) = delete;
  Rotation& operator=(const Rotation&) = delete;
  virtual ~Rotation() = default;

  /// y = norm(x) Wᵀ + b, of whose first `heads` heads each is turned by its row's position. `normed` is scratch.
  virtual void project(Device& device, const Projection<Device, Element, Element>& by, const Norm<Sum>& norm, const Sum* x,
                       std::int64_t rows, Element* normed, Element* y, const std::int32_t* positions,
                       std::int64_t heads) const = 0;
};

/// By the device's function for the dimension.
template <class Device, class Element, int head_dim>
class CompiledRotation final : public Rotation<Device, Element> {
 public:
  using Sum = jrt::ComputeType<Element>;

  explicit CompiledRotation(double base) : rotary_(base) {}

  void project(Device& device, const Projection<Device, Element, Element>& by, const Norm<Sum>& norm, const Sum* x,
               std::int64_t rows, Element* normed, Element* y, const std::int32_t* positions,
               std::int64_t heads) const override {
    device.multiply_normed_rotated(by, norm, x, rows, normed, y, rotary_, positions, heads);
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
  std::unique_ptr<const StepKernel> step;  ///< of whole decode steps; null: there is none for this model

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

/// The position in a list of operators, `jrt::Operators`, of the one that a model needs.
template <class Compiled>
int chosen(const ModelConfig& config, const jrt::OperatorDescription& wanted) {
  int index = 0;
  if (const jrt::Status status = Compiled::find(wanted, index); !status) {
    throw std::runtime_error(config.source + ": " + status.c_str() +
                             " (JRT_LM_SHAPES in examples/jrt_lm/CMakeLists.txt adds to these)");
  }
  return index;
}

/// Null if the model has none of its kind.
template <class Compiled, class Execution, class Tensors>
std::unique_ptr<const Mixer<Execution, Tensors>> chosen_mixer(const ModelConfig& config, MixerKind kind,
                                                              const jrt::OperatorDescription& wanted) {
  if (!config.has(kind)) {
    return nullptr;
  }
  return Compiled::visit(chosen<Compiled>(config, wanted),
                         []<class Config>(std::type_identity<Config>) { return make_mixer<Config, Execution, Tensors>(); });
}

/// Those that a model has, out of lists of the operators that were compiled.
template <class Device, class Element, class Convolutions, class Linears, class Windows>
Mixers<Device, Element> mixers_of(const ModelConfig& config) {
  using Execution = typename Device::Execution;
  const KernelShape& shape = config.shape;
  const jrt::OperatorDescription convolution{.kind = "convolution", .kernel_width = shape.kernel_width};
  const jrt::OperatorDescription linear{.kind = "linear", .d = shape.feature_dim, .dv = shape.head_dim};
  const jrt::OperatorDescription window{.kind = "window", .d = shape.head_dim, .left_window = shape.left_window};
  Mixers<Device, Element> mixers{
      chosen_mixer<Convolutions, Execution, ConvolutionTensors<Element>>(config, MixerKind::convolution, convolution),
      chosen_mixer<Linears, Execution, LinearTensors<Element>>(config, MixerKind::linear, linear),
      chosen_mixer<Windows, Execution, WindowTensors<Element>>(config, MixerKind::window, window), nullptr, nullptr};
  if (mixers.window != nullptr) {
    mixers.rotation = Windows::visit(chosen<Windows>(config, window), [&]<class Config>(std::type_identity<Config>) {
      return std::unique_ptr<const Rotation<Device, Element>>(
          std::make_unique<CompiledRotation<Device, Element, Config::head_dim>>(config.rotary_base));
    });
  }
  return mixers;
}

}  // namespace jrt_lm
