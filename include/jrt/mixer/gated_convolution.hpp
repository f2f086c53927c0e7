// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "jrt/backward.hpp"
#include "jrt/decode.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/numeric.hpp"
#include "jrt/policy/activation.hpp"
#include "jrt/prefill.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"
#include "jrt/tensor_view.hpp"

/// The gated short convolution between BaseConv's projections (arXiv 2402.18668): depthwise, causal, with K taps,
///
///     y_t = activation(Σ_{τ<K} w_τ u_{t−K+1+τ} + bias) · gate_t,
///
/// where inputs before the start are 0 or come from the initial state. Its operations are `prefill`, `decode_step`,
/// `staged_step`, `commit` and `backward`, chosen by the configuration of their arguments.
namespace jrt {

/// A convolution is chosen at compile time by a struct of policies. `KernelWidth` is K, from 2 to 8; the number of channels
/// is a run-time extent. Any other convolution is a struct that inherits this one and replaces what differs.
template <Element ElementT, int KernelWidth>
struct GatedConvolution {
  using Element = ElementT;  ///< Type of inputs, gates, outputs and the carried inputs.
  using Weight = ElementT;   ///< Type of weights and bias.
  using Activation = Silu;
  static constexpr int kernel_width = KernelWidth;  ///< K
};

namespace detail {

template <class Config>
struct CheckedConvolution {
  static_assert(Element<typename Config::Element> && Element<typename Config::Weight>,
                "jrt config: Element and Weight must each be float, double, jrt::Half or jrt::BFloat16.");
  static_assert(Activation<typename Config::Activation>,
                "jrt config: Activation needs a static apply(sum) that returns the type of its argument, for float and "
                "double; see jrt/policy/activation.hpp.");
  static_assert(Config::kernel_width >= 2 && Config::kernel_width <= 8,
                "jrt config: kernel_width must be from 2 to 8 taps; one tap needs no convolution, more no short one.");
  static constexpr bool ok = true;
};

}  // namespace detail

/// A struct of policies that forms a legal convolution; an illegal one does not compile, with a message that says why.
template <class Config>
concept ConvolutionConfig = requires {
  typename Config::Element;
  typename Config::Weight;
  typename Config::Activation;
  { Config::kernel_width } -> std::convertible_to<int>;
}
&&detail::CheckedConvolution<Config>::ok;

/// State of one channel: its last K−1 inputs, oldest first. The heads of a pool are the channels.
template <int KernelWidth, Element ScalarT>
struct ConvolutionFormat {
  using Scalar = ScalarT;

  static constexpr const char* name = "gated convolution";
  static constexpr int input_dim = 1;
  static constexpr int rows = KernelWidth - 1;
  static constexpr int columns = 1;
  static constexpr std::int64_t head_values = rows;
  static constexpr std::int64_t head_elements = rows;
  static constexpr std::size_t alignment = alignof(Scalar);

  /// Bytes of one slot: the decode state of one sequence in one layer of `channels` channels.
  static constexpr std::int64_t slot_bytes(std::int64_t channels) {
    return head_elements * channels * static_cast<std::int64_t>(sizeof(Scalar));
  }
};

namespace detail {

template <ConvolutionConfig Config>
struct FormatOf<Config> {
  using type = ConvolutionFormat<Config::kernel_width, typename Config::Element>;
};

template <ConvolutionConfig Config>
inline constexpr std::int64_t staged_row_elements<Config> = 1;

/// Compute type of the sums over taps: double if any type is double.
template <ConvolutionConfig Config>
using ConvolutionCompute =
    ComputeType<std::conditional_t<std::is_same_v<typename Config::Weight, double>, double, typename Config::Element>>;

/// Rejects a convolution that has no gradients, with what to add. Instantiated by `backward`, not by its
/// arguments: overload resolution looks at those for every operation.
template <class Config>
struct CheckedConvolutionBackward {
  static_assert(DifferentiableActivation<typename Config::Activation>,
                "jrt backward: the Activation has no derivative. Add static T derivative(T sum) for float and double, the "
                "derivative of apply; see docs/policies.md.");
  static constexpr bool ok = true;
};

}  // namespace detail

/// Format of the gradient of carried inputs: as the state, in the type in which sums are formed.
template <ConvolutionConfig Config>
using ConvolutionGradientFormatOf = ConvolutionFormat<Config::kernel_width, detail::ConvolutionCompute<Config>>;

/// Arguments of `prefill` for the convolution. B sequences, T tokens, C channels, K taps. The views have one head of dim C;
/// input and gate may be halves of one packed projection.
///
/// Prefixes and positions in `sequences` are ignored. Left pads contribute nothing and their outputs are 0. Outputs must
/// not overlap inputs. Cost O(T · C · K), one pass over memory; no workspace.
template <ConvolutionConfig Config>
struct PrefillArgs<Config> {
  using Element = typename Config::Element;
  using Weight = typename Config::Weight;
  using Format = StateFormatOf<Config>;

  TensorView<const Element> input{};                ///< (B, T, 1, C): u
  TensorView<const Element> gate{};                 ///< (B, T, 1, C); if omitted, outputs are not gated
  TensorView<Element> output{};                     ///< (B, T, 1, C); every row of every sequence is written
  const Weight* weight = nullptr;                   ///< (C, K), contiguous; tap K−1 multiplies the token itself
  const Weight* bias = nullptr;                     ///< (C); if omitted, 0
  Sequences sequences{};                            ///< lengths and pads
  StateSlots<Format> initial_state{};               ///< inputs before the first; if omitted, 0
  StateSlots<Format> final_state{};                 ///< receives the last K−1 inputs; dropped if omitted
  const std::uint8_t* has_initial_state = nullptr;  ///< (B), 0 where the slot's content is to be ignored
};

/// Arguments of `backward` for the convolution, in the notation of `PrefillArgs`. With dy = `output_gradient`, T' the
/// tokens without left pads and s_t the sum before the activation,
///
///     dgate_t = dy_t · activation(s_t)
///     ds_t = dy_t · gate_t · activation'(s_t)                                    0 where there is no token t
///     du_t = Σ_{τ<K} w_τ ds_{t+K−1−τ}  (+ dstate_{t−T'+K−1} for t ≥ T'−K+1, of the final state)
///     dw_τ = Σ_t ds_t u_{t−K+1+τ},    dbias = Σ_t ds_t                           over all sequences
///
/// and the gradient of the initial state is du_t for −K+1 ≤ t < 0. The sums s_t are recomputed: nothing is saved by the
/// prefill. A sequence with `skip_slot` in any of the slots is skipped.
///
/// Cost O(T · C · K), one pass over memory. Workspace: K + 1 sums of each channel for every segment of tokens, if gradients
/// of weights or bias are wanted.
template <ConvolutionConfig Config>
struct BackwardArgs<Config> {
  using Element = typename Config::Element;
  using Weight = typename Config::Weight;
  using Format = StateFormatOf<Config>;
  using GradientFormat = ConvolutionGradientFormatOf<Config>;

  TensorView<const Element> input{};                ///< as in the prefill, like all down to `has_initial_state`
  TensorView<const Element> gate{};                 ///< (B, T, 1, C)
  const Weight* weight = nullptr;                   ///< (C, K)
  const Weight* bias = nullptr;                     ///< (C)
  Sequences sequences{};                            ///< lengths and pads
  StateSlots<Format> initial_state{};               ///< inputs before the first; if omitted, 0
  const std::uint8_t* has_initial_state = nullptr;  ///< (B), 0 where the slot's content is to be ignored

  TensorView<const Element> output_gradient{};        ///< (B, T, 1, C); required
  StateSlots<GradientFormat> final_state_gradient{};  ///< of the final state, where it has consumers; if omitted, 0

  TensorView<Element> input_gradient{};  ///< (B, T, 1, C), optional; may be a half of a packed gradient, as `input`
  TensorView<Element> gate_gradient{};   ///< (B, T, 1, C), optional; only with a gate
  Weight* weight_gradient = nullptr;     ///< (C, K), optional
  Weight* bias_gradient = nullptr;       ///< (C), optional, with or without a bias
  /// Optional: receives that of the inputs before the first, where these are 0 too; but 0 where `has_initial_state` says
  /// that the slot was ignored. May have the slots of `final_state_gradient`.
  StateSlots<GradientFormat> initial_state_gradient{};
};

/// Arguments of `decode_step` for the convolution, in the same notation; T is the number of new tokens, usually 1.
template <ConvolutionConfig Config>
struct DecodeArgs<Config> {
  using Element = typename Config::Element;
  using Weight = typename Config::Weight;
  using Format = StateFormatOf<Config>;

  TensorView<const Element> input{};  ///< (B, T, 1, C)
  TensorView<const Element> gate{};   ///< (B, T, 1, C); if omitted, outputs are not gated
  TensorView<Element> output{};       ///< (B, T, 1, C)
  const Weight* weight = nullptr;     ///< (C, K)
  const Weight* bias = nullptr;       ///< (C); if omitted, 0
  StateSlots<Format> source{};        ///< the inputs before the step; required
  StateSlots<Format> destination{};   ///< receives the last K−1 inputs; defaults to `source`
};

/// Arguments of `staged_step` for the convolution.
template <ConvolutionConfig Config>
struct StagedStepArgs<Config> {
  using Element = typename Config::Element;
  using Weight = typename Config::Weight;
  using Format = StateFormatOf<Config>;

  TensorView<const Element> input{};  ///< (B, T, 1, C)
  TensorView<const Element> gate{};   ///< (B, T, 1, C); if omitted, outputs are not gated
  TensorView<Element> output{};       ///< (B, T, 1, C)
  const Weight* weight = nullptr;     ///< (C, K)
  const Weight* bias = nullptr;       ///< (C); if omitted, 0
  StateSlots<Format> state{};         ///< the committed inputs; only read
  StagingView<Config> staging{};      ///< (B, capacity, C): receives the T new inputs after the staged ones
  std::int64_t already_staged = 0;    ///< rows of every sequence staged by earlier steps since the last commit
};

/// Arguments of `commit` for the convolution.
template <ConvolutionConfig Config>
struct CommitArgs<Config> {
  using Format = StateFormatOf<Config>;

  StagingView<Config> staging{};                  ///< as the staged steps left it
  const std::int32_t* accepted_tokens = nullptr;  ///< (B) accepted inputs, 0 … staging.tokens; read by the executing device
  StateSlots<Format> source{};                    ///< the committed inputs
  StateSlots<Format> destination{};               ///< receives the new ones; defaults to `source`
};

}  // namespace jrt
