// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "jrt/backward.hpp"
#include "jrt/decode.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/shared/state/joined_names.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/mixer/window_attention.hpp"
#include "jrt/numeric.hpp"
#include "jrt/policy/normaliser.hpp"
#include "jrt/prefill.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"
#include "jrt/tensor_view.hpp"

/// Linear attention and window attention in one mixer, on the same queries and keys: the last L+1 keys are weighted with
/// e^s, all older ones and the encoder region with the feature map's kernel, and one sum normalises both. With
/// s_ij = q_i·k_j/√d,
///
///           Σ_{i−L ≤ j ≤ i} e^{s_ij} v_j + Σ_{j < i−L} φ(q_i)·φ(k_j) v_j + Σ_{j<M} φ(q_i)·φ(k_enc_j) v_enc_j
///     y_i = ─────────────────────────────────────────────────────────────────────────────────────────────────
///                                  the same sums without the values, + ε
///
/// For a Taylor map φ(q)·φ(k) = 1 + s + s²/2 is the expansion of e^s, so the two weights agree where s is small. (Two
/// separate mixers would have a normaliser each.) Its operations are `prefill`, `backward`, `decode_step`, `staged_step`
/// and `commit`, chosen by the configuration of their arguments.
///
/// All weights are >= 0: a key is added to the state when it leaves the window, not before, so nothing is ever subtracted.
/// No weight overflows: weights are relative to the largest score, or to 0 if that is larger.
namespace jrt {

namespace detail {

template <class Config>
struct CheckedHybrid {
  using Linear = typename Config::Linear;
  using Window = typename Config::Window;
  static_assert(std::is_same_v<typename Linear::Element, typename Window::Element>,
                "jrt config: Linear and Window must have the same Element; WindowBeside<Linear, L> takes it from Linear.");
  static_assert(
      Linear::FeatureMap::input_dim == Window::head_dim,
      "jrt config: Window::head_dim must be the input_dim of Linear's FeatureMap, since both read the same queries "
      "and keys; use WindowBeside<Linear, L>.");
  static_assert(Linear::value_dim == Window::value_dim,
                "jrt config: Linear and Window must have the same value_dim, since both read the same values; use "
                "WindowBeside<Linear, L>.");
  static_assert(
      !Window::Rotary::rotates,
      "jrt config: Window must not rotate queries and keys, since the feature map sees them unrotated; use NoRotary.");
  static_assert(Linear::FeatureMap::has_closed_form && !Linear::FeatureMap::needs_position,
                "jrt config: Linear's FeatureMap must have a closed form and need no position, so that its weights stand "
                "beside e^s as functions of q.k; use Taylor2.");
  static_assert(Linear::FeatureMap::nonnegative_kernel,
                "jrt config: Linear's FeatureMap must have a kernel that is never negative, since one sum normalises both "
                "kinds of weights; use Taylor2.");
  static_assert(is_sum_normaliser<typename Linear::Normaliser>,
                "jrt config: Linear's Normaliser must be a SumNormaliser, since one sum normalises both kinds of weights.");
  static_assert(
      !Linear::Mask::reads_future,
      "jrt config: Linear's Mask must not read the future, since a window lies behind its query; use PrefixMask or "
      "CausalMask.");
  static_assert(!Linear::Padding::keeps_padded_keys,
                "jrt config: Linear's Padding must be DropPadding, since a window does not see padded keys.");
  static constexpr bool ok = true;
};

}  // namespace detail

/// A window of L keys to the left of the query, with the element type and dimensions of a linear attention.
template <AttentionConfig Linear, int LeftWindow>
struct WindowBeside : SlidingWindowAttention<typename Linear::Element, Linear::FeatureMap::input_dim, LeftWindow> {
  static constexpr int value_dim = Linear::value_dim;
};

/// The mixer of `LinearT` (feature map, mask, ε, state type, split) and `WindowT` (L):
///
///     using Linear = jrt::PrefixLinearAttention<jrt::BFloat16, 16, 64>;
///     using Mixer = jrt::HybridAttention<Linear, jrt::WindowBeside<Linear, 128>>;
///     jrt::PrefillArgs<Mixer> args;
///
/// Both must have the same element type, d and dv. The feature map must have a closed form that is never negative; the
/// other policies must be `SumNormaliser`, `PrefixMask` or `CausalMask`, `DropPadding` and `NoRotary`.
template <AttentionConfig LinearT, WindowConfig WindowT>
struct HybridAttention {
  using Linear = LinearT;                     ///< How older keys and the encoder region are weighted and kept.
  using Window = WindowT;                     ///< How many keys are weighted with e^s.
  using Element = typename LinearT::Element;  ///< Type of queries, keys, values, outputs and the ring.
};

/// A legal pair; an illegal one does not compile, with a message that says what to change.
template <class Config>
concept HybridConfig = requires {
  typename Config::Linear;
  typename Config::Window;
}
&&AttentionConfig<typename Config::Linear>&& WindowConfig<typename Config::Window>&& detail::CheckedHybrid<Config>::ok;

/// State of one head: the linear state of the tokens that have left the window (and of the encoder region) in
/// `StateFormat`, then the ring of the last L+1 keys and values in `WindowFormat`.
template <class LinearFormatT, class WindowFormatT>
struct HybridFormat {
  using LinearFormat = LinearFormatT;
  using WindowFormat = WindowFormatT;
  using Scalar = std::uint64_t;  ///< Only a unit of memory: state and ring have their own types.

  static constexpr const char* name = detail::joined_names<detail::window_and, LinearFormat>;
  static constexpr const char* scalar_name =
      detail::joined_scalars<typename LinearFormat::Scalar, typename WindowFormat::Scalar>;
  static constexpr int input_dim = LinearFormat::input_dim;
  static constexpr int rows = LinearFormat::rows + WindowFormat::rows;  ///< of the state, then of the ring
  static constexpr int columns = LinearFormat::columns;
  static constexpr std::size_t alignment = 16;  ///< of pools and their slots, in bytes
  /// Byte offset of the ring in a head.
  static constexpr std::int64_t window_offset_bytes = detail::round_up<std::int64_t>(LinearFormat::slot_bytes(1), 16);
  static constexpr std::int64_t head_bytes =
      window_offset_bytes + detail::round_up<std::int64_t>(WindowFormat::slot_bytes(1), 16);
  static constexpr std::int64_t head_values = head_bytes / static_cast<std::int64_t>(sizeof(Scalar));
  static constexpr std::int64_t head_elements = head_values;

  /// Bytes of one slot: the decode state of one sequence in one layer, constant in the number of tokens.
  static constexpr std::int64_t slot_bytes(std::int64_t heads) { return head_bytes * heads; }
};

namespace detail {

template <HybridConfig Config>
struct FormatOf<Config> {
  using type = HybridFormat<StateFormatOf<typename Config::Linear>, StateFormatOf<typename Config::Window>>;
};

template <HybridConfig Config>
inline constexpr std::int64_t staged_row_elements<Config> = staged_row_elements<typename Config::Window>;

}  // namespace detail

/// Arguments of `prefill` for the mixer. B sequences, T tokens, M encoder tokens, Hq query heads, Hkv key/value heads, d =
/// Window::head_dim, dv = Linear::value_dim.
///
/// With an initial state the call continues where it left off: prefill(a ‖ b) = prefill(b) from the state of prefill(a);
/// the encoder region is added once. No query sees left pads, and their outputs are 0. The output must not overlap the
/// inputs. Cost O((T + M) · D · dv + T · L · (d + dv)) per head; the workspace also holds one value per token and query
/// head.
template <HybridConfig Config>
struct PrefillArgs<Config> {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  TensorView<const Element> query{};                  ///< (B, T, Hq, d)
  TensorView<const Element> key{};                    ///< (B, T, Hkv, d)
  TensorView<const Element> value{};                  ///< (B, T, Hkv, dv)
  TensorView<const Element> key_encoder{};            ///< (B, M, Hkv, d); only with a mask that reads the encoder
  TensorView<const Element> value_encoder{};          ///< (B, M, Hkv, dv); likewise
  TensorView<Element> output{};                       ///< (B, T, Hq, dv); every row of every sequence is written
  Sequences sequences{};                              ///< lengths, prefixes and pads of the sequences
  StateSlots<Format> initial_state{};                 ///< state before the first token; if omitted, empty
  StateSlots<Format> final_state{};                   ///< receives the state after the last; dropped if omitted
  const std::uint8_t* has_initial_state = nullptr;    ///< (B), 0 where the slot's content is to be ignored
  typename Config::Linear::FeatureMap feature_map{};  ///< run-time data of the feature map, if it has any
  /// (B, T, Hq, 1), optional: receives the natural logarithm of the denominator of y, with its ε; −∞ where there is no
  /// token. `backward` needs it.
  TensorView<ComputeType<Element>> log_sum_exp{};
};

/// Arguments of `backward` for the mixer, in the notation of `PrefillArgs`. With dy = `output_gradient`, l = `log_sum_exp`,
/// w_ij the weight of key j for query i (e^{s_ij} in the window, φ(q_i)·φ(k_j) for older keys and the encoder region), and
/// sums over the pairs in which query i sees key j,
///
///     dw_ij = e^{−l_i} (dy_i·v_j − dy_i·y_i)
///     dq_i = Σ_j dw_ij ∂w_ij/∂q_i,    dk_j = Σ_i dw_ij ∂w_ij/∂k_j,    dv_j = Σ_i e^{−l_i} w_ij dy_i
///
/// Of the prefill, `backward` needs outputs and `log_sum_exp`. Gradients do not pass through states: the prefill must have
/// started without one, and its final state have no consumer. Gradients are the linear part's, rounded to the element type,
/// plus the window's. Cost and workspace: those of the two mixers' backward passes.
template <HybridConfig Config>
struct BackwardArgs<Config> {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  TensorView<const Element> query{};                     ///< (B, T, Hq, d)
  TensorView<const Element> key{};                       ///< (B, T, Hkv, d)
  TensorView<const Element> value{};                     ///< (B, T, Hkv, dv)
  TensorView<const Element> key_encoder{};               ///< (B, M, Hkv, d)
  TensorView<const Element> value_encoder{};             ///< (B, M, Hkv, dv)
  TensorView<const Element> output{};                    ///< (B, T, Hq, dv), what the prefill wrote
  TensorView<const ComputeType<Element>> log_sum_exp{};  ///< (B, T, Hq, 1), what the prefill wrote
  Sequences sequences{};                                 ///< lengths, prefixes and pads of the sequences
  StateSlots<Format> initial_state{};                    ///< must be left out: gradients do not pass through it
  typename Config::Linear::FeatureMap feature_map{};     ///< its run-time data gets no gradient

  TensorView<const Element> output_gradient{};  ///< (B, T, Hq, dv); required

  TensorView<Element> query_gradient{};          ///< (B, T, Hq, d), optional
  TensorView<Element> key_gradient{};            ///< (B, T, Hkv, d), optional
  TensorView<Element> value_gradient{};          ///< (B, T, Hkv, dv), optional
  TensorView<Element> key_encoder_gradient{};    ///< (B, M, Hkv, d), optional
  TensorView<Element> value_encoder_gradient{};  ///< (B, M, Hkv, dv), optional
};

/// Arguments of `decode_step` for the mixer; T is the number of new tokens, usually 1.
template <HybridConfig Config>
struct DecodeArgs<Config> {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  TensorView<const Element> query{};  ///< (B, T, Hq, d)
  TensorView<const Element> key{};    ///< (B, T, Hkv, d)
  TensorView<const Element> value{};  ///< (B, T, Hkv, dv)
  TensorView<Element> output{};       ///< (B, T, Hq, dv)
  StateSlots<Format> source{};        ///< the states read; required
  StateSlots<Format> destination{};   ///< receives the new states; defaults to `source`
  typename Config::Linear::FeatureMap feature_map{};
};

/// Arguments of `staged_step` for the mixer.
template <HybridConfig Config>
struct StagedStepArgs<Config> {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  TensorView<const Element> query{};  ///< (B, T, Hq, d)
  TensorView<const Element> key{};    ///< (B, T, Hkv, d)
  TensorView<const Element> value{};  ///< (B, T, Hkv, dv)
  TensorView<Element> output{};       ///< (B, T, Hq, dv)
  StateSlots<Format> state{};         ///< the committed states; only read
  StagingView<Config> staging{};      ///< receives the T new rows after the staged ones
  std::int64_t already_staged = 0;    ///< rows of every sequence staged since the last commit
  typename Config::Linear::FeatureMap feature_map{};
};

/// Arguments of `commit` for the mixer.
template <HybridConfig Config>
struct CommitArgs<Config> {
  using Format = StateFormatOf<Config>;

  StagingView<Config> staging{};                  ///< as the staged steps left it
  const std::int32_t* accepted_tokens = nullptr;  ///< (B) rows to accept, 0 … staging.tokens; read by the executing device
  StateSlots<Format> source{};                    ///< the committed states
  StateSlots<Format> destination{};               ///< receives the new ones; defaults to `source`
  typename Config::Linear::FeatureMap feature_map{};
};

}  // namespace jrt
