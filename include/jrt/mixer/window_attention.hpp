// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

#include "jrt/backward.hpp"
#include "jrt/decode.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/window_range.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/numeric.hpp"
#include "jrt/policy/rotary.hpp"
#include "jrt/policy/taylor.hpp"
#include "jrt/prefill.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"
#include "jrt/tensor_view.hpp"

/// Sliding-window softmax attention, Based's local mixer (arXiv 2402.18668):
///
///     y_i = Σ_{i−L ≤ j ≤ i} softmax_j(scale · q_i·k_j) v_j,
///
/// over the L keys to the left of the query and its own. Decoding keeps a ring of L+1 keys and values. Its operations are
/// `prefill`, `backward`, `decode_step`, `staged_step` and `commit`, chosen by the configuration of their arguments.
namespace jrt {

/// A window is chosen at compile time by a struct of policies. `HeadDim` is d, the dimension of queries, keys and values;
/// `LeftWindow` is L, the number of visible keys to the left of the query. Any other window is a struct that inherits this
/// one and replaces what differs:
///
///     struct Mine : jrt::SlidingWindowAttention<jrt::BFloat16, 64, 128> {
///       using Rotary = jrt::RotaryHalves<64>;
///     };
template <Element ElementT, int HeadDim, int LeftWindow>
struct SlidingWindowAttention {
  using Element = ElementT;                       ///< Type of queries, keys, values, outputs and the cache.
  using Rotary = NoRotary;                        ///< Whether queries and keys are rotated by their position.
  static constexpr int head_dim = HeadDim;        ///< of queries and keys
  static constexpr int value_dim = HeadDim;       ///< of values and outputs
  static constexpr int left_window = LeftWindow;  ///< L
};

/// L for the `window_size` of the authors' configurations, half of which lies to the left: 256 means 128 keys and the
/// query's own.
constexpr int left_window_of(int window_size) {
  return window_size / 2;
}

namespace detail {

template <class Config>
constexpr bool rotary_fits() {
  if constexpr (Config::Rotary::rotates) {
    return 2 * Config::Rotary::half_dim == Config::head_dim;
  } else {
    return true;
  }
}

template <class Config>
struct CheckedWindow {
  static_assert(Element<typename Config::Element>,
                "jrt config: Element must be float, double, jrt::Half or jrt::BFloat16.");
  static_assert(Config::head_dim >= 1 && Config::value_dim >= 1, "jrt config: head_dim and value_dim must be at least 1.");
  static_assert(Config::left_window >= 0,
                "jrt config: left_window must be at least 0; a query always sees itself, and left_window keys before it.");
  static_assert(Rotary<typename Config::Rotary>, "jrt config: Rotary needs the bool constant rotates.");
  static_assert(rotary_fits<Config>(), "jrt config: Rotary rotates vectors of another size; use RotaryHalves<head_dim>.");
  static constexpr bool ok = true;
};

}  // namespace detail

/// A struct of policies that forms a legal window; an illegal one does not compile, with a message that says why.
template <class Config>
concept WindowConfig = requires {
  typename Config::Element;
  typename Config::Rotary;
  { Config::head_dim } -> std::convertible_to<int>;
  { Config::value_dim } -> std::convertible_to<int>;
  { Config::left_window } -> std::convertible_to<int>;
}
&&detail::CheckedWindow<Config>::ok;

/// How a window's cache holds its keys.
enum class CachedKeys {
  as_given,  ///< as passed to the calls
  rotated,   ///< rotated by their position, once, on entering the cache
};

/// State of one head of a window: a ring of L+1 keys, `rows` x d, one of values, `rows` x dv, and the count of tokens seen,
/// a 64-bit integer. The token with index n, counted from 0, is in row n mod (L+1) of each.
///
/// The count is from 0 to `max_tokens`. Any other value is mapped into this range: a negative one to 0, a larger one to the
/// largest legal count that is less by a multiple of L+1. A sequence that reaches the limit therefore continues with its
/// ring unchanged; only the distances between rotated keys and queries differ for the next L tokens.
template <int HeadDim, int ValueDim, int LeftWindow, Element ScalarT, CachedKeys Keys>
struct WindowFormat {
  using Scalar = ScalarT;

  static constexpr const char* name = Keys == CachedKeys::rotated ? "sliding window, rotated keys" : "sliding window";
  static constexpr int input_dim = HeadDim;
  static constexpr int rows = LeftWindow + 1;
  static constexpr int columns = ValueDim;
  static constexpr std::int64_t value_offset = detail::round_up<std::int64_t>(std::int64_t{rows} * HeadDim, 16);
  static constexpr std::int64_t count_offset =
      value_offset + detail::round_up<std::int64_t>(std::int64_t{rows} * ValueDim, 16);
  static constexpr std::int64_t head_values =
      count_offset + static_cast<std::int64_t>(sizeof(std::int64_t) / sizeof(Scalar));
  static constexpr std::int64_t ring_elements = detail::round_up<std::int64_t>(head_values, 16);
  static constexpr std::int64_t head_elements = ring_elements;
  static constexpr std::size_t alignment = 16;                     ///< of pools and their slots, in bytes
  static constexpr std::int64_t max_tokens = detail::max_counted;  ///< 2^62

  /// Bytes of one slot: the decode state of one sequence in one layer, constant in the number of tokens.
  static constexpr std::int64_t slot_bytes(std::int64_t heads) {
    return head_elements * heads * static_cast<std::int64_t>(sizeof(Scalar));
  }
};

namespace detail {

template <WindowConfig Config>
struct FormatOf<Config> {
  using type = WindowFormat<Config::head_dim, Config::value_dim, Config::left_window, typename Config::Element,
                            Config::Rotary::rotates ? CachedKeys::rotated : CachedKeys::as_given>;
};

template <WindowConfig Config>
inline constexpr std::int64_t staged_row_elements<Config> = Config::head_dim + Config::value_dim;

/// 1/√d, the usual scale.
template <class Config>
inline constexpr double default_window_scale = 1 / square_root(Config::head_dim);

}  // namespace detail

/// Arguments of `prefill` for a window, in the notation of linear attention: B sequences, T tokens, Hq query heads, Hkv
/// key/value heads, d = head_dim, dv = value_dim.
///
/// With an initial state the call continues where it left off: prefill(a ‖ b) = prefill(b) from the state of prefill(a).
/// Prefixes and positions in `sequences` are ignored (the cache counts positions). No query sees left pads, and their
/// outputs are 0. The output must not overlap the inputs. Cost O(T · L · (d + dv)) per head.
template <WindowConfig Config>
struct PrefillArgs<Config> {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  TensorView<const Element> query{};                    ///< (B, T, Hq, d)
  TensorView<const Element> key{};                      ///< (B, T, Hkv, d)
  TensorView<const Element> value{};                    ///< (B, T, Hkv, dv)
  TensorView<Element> output{};                         ///< (B, T, Hq, dv); every row of every sequence is written
  Sequences sequences{};                                ///< lengths and pads
  StateSlots<Format> initial_state{};                   ///< tokens before the first; if omitted, none
  StateSlots<Format> final_state{};                     ///< receives the last L+1; dropped if omitted
  const std::uint8_t* has_initial_state = nullptr;      ///< (B), 0 where the slot's content is to be ignored
  double scale = detail::default_window_scale<Config>;  ///< of the scores
  typename Config::Rotary rotary{};
  /// (B, T, Hq, 1), optional: receives log Σ_j e^{scale · q_i·k_j} over the keys that a query sees, the natural logarithm;
  /// −∞, that of an empty sum, where there is no token. `backward` needs it.
  TensorView<ComputeType<Element>> log_sum_exp{};
};

/// Arguments of `backward` for a window, in the notation of `PrefillArgs`. With dy = `output_gradient` and the sums over
/// the pairs in which query i sees key j,
///
///     P_ij = e^{scale · q_i·k_j − log_sum_exp_i},    dS_ij = P_ij (dy_i·v_j − dy_i·y_i)
///     dq_i = scale Σ_j dS_ij k_j,    dk_j = scale Σ_i dS_ij q_i,    dv_j = Σ_i P_ij dy_i
///
/// where q and k are rotated, if the mixer rotates, and dq and dk rotated back. Gradients of grouped heads are summed over
/// their query heads. Of the prefill, `backward` needs outputs and `log_sum_exp`; a query whose `log_sum_exp` is −∞ saw no
/// key, and its gradient is 0.
///
/// Gradients through a cache are not supported: the prefill must have started without one. Cost O(T · L · (d + dv)) per
/// query head, about two and a half times that of the prefill.
template <WindowConfig Config>
struct BackwardArgs<Config> {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  TensorView<const Element> query{};                     ///< (B, T, Hq, d)
  TensorView<const Element> key{};                       ///< (B, T, Hkv, d)
  TensorView<const Element> value{};                     ///< (B, T, Hkv, dv)
  TensorView<const Element> output{};                    ///< (B, T, Hq, dv), what the prefill wrote
  TensorView<const ComputeType<Element>> log_sum_exp{};  ///< (B, T, Hq, 1), what the prefill wrote
  Sequences sequences{};                                 ///< lengths and pads
  StateSlots<Format> initial_state{};                    ///< must be left out: gradients do not pass through a cache
  double scale = detail::default_window_scale<Config>;   ///< of the scores
  typename Config::Rotary rotary{};

  TensorView<const Element> output_gradient{};  ///< (B, T, Hq, dv); required

  TensorView<Element> query_gradient{};  ///< (B, T, Hq, d), optional
  TensorView<Element> key_gradient{};    ///< (B, T, Hkv, d), optional
  TensorView<Element> value_gradient{};  ///< (B, T, Hkv, dv), optional
};

/// Arguments of `decode_step` for a window; T is the number of new tokens, usually 1.
template <WindowConfig Config>
struct DecodeArgs<Config> {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  TensorView<const Element> query{};                    ///< (B, T, Hq, d)
  TensorView<const Element> key{};                      ///< (B, T, Hkv, d)
  TensorView<const Element> value{};                    ///< (B, T, Hkv, dv)
  TensorView<Element> output{};                         ///< (B, T, Hq, dv)
  StateSlots<Format> source{};                          ///< the caches read; required
  StateSlots<Format> destination{};                     ///< receives the new caches; defaults to `source`
  double scale = detail::default_window_scale<Config>;  ///< of the scores
  typename Config::Rotary rotary{};
};

/// Arguments of `staged_step` for a window. Staged keys are rotated by their position.
template <WindowConfig Config>
struct StagedStepArgs<Config> {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  TensorView<const Element> query{};                    ///< (B, T, Hq, d)
  TensorView<const Element> key{};                      ///< (B, T, Hkv, d)
  TensorView<const Element> value{};                    ///< (B, T, Hkv, dv)
  TensorView<Element> output{};                         ///< (B, T, Hq, dv)
  StateSlots<Format> state{};                           ///< the committed caches; only read
  StagingView<Config> staging{};                        ///< receives the T new rows after the staged ones
  std::int64_t already_staged = 0;                      ///< rows of every sequence staged since the last commit
  double scale = detail::default_window_scale<Config>;  ///< of the scores
  typename Config::Rotary rotary{};
};

/// Arguments of `commit` for a window.
template <WindowConfig Config>
struct CommitArgs<Config> {
  using Format = StateFormatOf<Config>;

  StagingView<Config> staging{};                  ///< as the staged steps left it
  const std::int32_t* accepted_tokens = nullptr;  ///< (B) rows to accept, 0 … staging.tokens; read by the executing device
  StateSlots<Format> source{};                    ///< the committed caches
  StateSlots<Format> destination{};               ///< receives the new ones; defaults to `source`
};

}  // namespace jrt
