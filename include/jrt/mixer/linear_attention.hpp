// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>

#include "jrt/backward.hpp"
#include "jrt/decode.hpp"
#include "jrt/numeric.hpp"
#include "jrt/policy/feature_map.hpp"
#include "jrt/policy/mask.hpp"
#include "jrt/policy/normaliser.hpp"
#include "jrt/policy/padding.hpp"
#include "jrt/policy/products.hpp"
#include "jrt/policy/split.hpp"
#include "jrt/policy/taylor.hpp"
#include "jrt/prefill.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"
#include "jrt/tensor_view.hpp"

/// A linear attention operator is chosen at compile time by a struct of policies.
namespace jrt {

/// Prefix linear attention as published (JRT-RNN): Taylor map, prefix mask, normalised, float32 state. `HeadDim` is d (the
/// dimension of queries and keys), `ValueDim` dv. Any other operator is a struct that inherits this one and replaces what
/// differs:
///
///     struct Mine : jrt::PrefixLinearAttention<jrt::BFloat16, 16, 64> {
///       using FeatureMap = jrt::EluPlusOne<16>;
///       using Mask = jrt::CausalMask;
///     };
template <Element ElementT, int HeadDim, int ValueDim>
struct PrefixLinearAttention {
  using Element = ElementT;                   ///< Type of queries, keys, values and outputs.
  using StateScalar = ComputeType<ElementT>;  ///< Storage type of the state: float, or double for double elements.
  using FeatureMap = Taylor2<HeadDim>;        ///< φ
  using Mask = PrefixMask;                    ///< Which tokens a query sees.
  using Normaliser = SumNormaliser<>;         ///< What the numerator is divided by.
  using Padding = DropPadding;                ///< The effect of left-padded positions.
  using Split = OccupancySplit<>;             ///< How a sequence is split over workers.
  using Products = FloatProducts;             ///< How a prefill multiplies float elements.
  static constexpr int value_dim = ValueDim;  ///< dv
};

/// Based: the same operator with the causal mask.
template <Element ElementT, int HeadDim, int ValueDim>
struct BasedLinearAttention : PrefixLinearAttention<ElementT, HeadDim, ValueDim> {
  using Mask = CausalMask;
};

namespace detail {

/// Compute type of an operator: double if any of its types is double.
template <class Config>
using ConfigCompute =
    ComputeType<std::conditional_t<std::is_same_v<typename Config::StateScalar, double>, double, typename Config::Element>>;

/// How an operator multiplies; those that say nothing multiply in their compute type.
template <class Config>
struct ProductsOf {
  using type = FloatProducts;
};
template <class Config>
requires requires {
  typename Config::Products;
}
struct ProductsOf<Config> {
  using type = typename Config::Products;
};

/// Rejects an illegal combination of policies with a message that says what to change. Instantiated by every entry point.
template <class Config>
struct CheckedConfig {
  using E = typename Config::Element;
  static_assert(Element<E> && Element<typename Config::StateScalar>,
                "jrt config: Element and StateScalar must each be float, double, jrt::Half or jrt::BFloat16.");
  static_assert(
      FeatureMap<typename Config::FeatureMap>,
      "jrt config: FeatureMap does not satisfy jrt::FeatureMap. It needs input_dim, feature_dim, name, "
      "nonnegative_kernel, has_closed_form, needs_position and a const expand(x, features) for float and double (with "
      "needs_position: expand(x, features, position)); "
      "see docs/policies.md.");
  static_assert(Mask<typename Config::Mask>, "jrt config: Mask needs the bool constants reads_encoder and reads_future.");
  static_assert(Normaliser<typename Config::Normaliser>,
                "jrt config: Normaliser needs uses_denominator, accepts_signed_kernel and a static factor(denominator) for "
                "float and double.");
  static_assert(Padding<typename Config::Padding>, "jrt config: Padding needs the bool constant keeps_padded_keys.");
  static_assert(Split<typename Config::Split>,
                "jrt config: Split needs a static std::int64_t segments(tokens, heads_in_batch, workers).");
  static_assert(Products<typename ProductsOf<Config>::type>,
                "jrt config: Products needs the bool constant splits_numbers.");
  static_assert(Config::value_dim >= 1, "jrt config: value_dim must be at least 1.");
  static_assert(
      Config::FeatureMap::nonnegative_kernel || Config::Normaliser::accepts_signed_kernel,
      "jrt config: this FeatureMap's kernel may be negative, so the sum that SumNormaliser divides by may vanish. "
      "Use jrt::Unnormalised, or a normaliser that declares accepts_signed_kernel.");
  static_assert(!std::is_same_v<E, double> || std::is_same_v<typename Config::StateScalar, double>,
                "jrt config: double elements need a double state; set StateScalar = double.");
  static_assert(!std::is_same_v<ConfigCompute<Config>, double> || !ProductsOf<Config>::type::splits_numbers,
                "jrt config: SplitProducts keeps 16 bits of a number, double is for more; use float elements and a float "
                "StateScalar, or FloatProducts.");
  using Map = typename Config::FeatureMap;
  static_assert(Map::input_dim >= 1 && Map::feature_dim >= 1,
                "jrt config: the FeatureMap's input_dim and feature_dim must be at least 1.");
  static_assert(
      !Map::has_closed_form ||
          requires(const Map& map) {
            { map.kernel(1.0F) } -> std::same_as<float>;
            { map.kernel(1.0) } -> std::same_as<double>;
          },
      "jrt config: a FeatureMap with has_closed_form needs T kernel(T dot) const for float and double.");
  static_assert(!(Map::has_closed_form && Map::needs_position),
                "jrt config: a closed form in q.k alone cannot depend on the position; set has_closed_form = false.");
  static_assert(!Config::Mask::reads_future || !Config::Padding::keeps_padded_keys,
                "jrt config: ZeroKeyPadding is defined for the published prefix and causal masks only; use DropPadding.");
  static constexpr bool ok = true;
};

}  // namespace detail

/// A struct of policies that forms a legal operator; an illegal one does not compile, with a message that says why.
template <class Config>
concept AttentionConfig = requires {
  typename Config::Element;
  typename Config::StateScalar;
  typename Config::FeatureMap;
  typename Config::Mask;
  typename Config::Normaliser;
  typename Config::Padding;
  typename Config::Split;
  { Config::value_dim } -> std::convertible_to<int>;
}
&&detail::CheckedConfig<Config>::ok;

namespace detail {

template <AttentionConfig Config>
struct FormatOf<Config> {
  using type = StateFormat<typename Config::FeatureMap, Config::value_dim, typename Config::StateScalar>;
};

/// Rejects an operator that has no gradients, with what to add. Instantiated by `backward`, not by its arguments: overload
/// resolution looks at those for every operation.
template <class Config>
struct CheckedBackward {
  static_assert(
      DifferentiableFeatureMap<typename Config::FeatureMap>,
      "jrt backward: the FeatureMap has no derivative. Add void expand_vjp(const T* x, const T* features_gradient, "
      "T* x_gradient) const for float and double (with needs_position: a fourth argument, the position; where "
      "queries and keys differ: expand_query_vjp and expand_key_vjp) and, with has_closed_form, "
      "T kernel_derivative(T dot) const; see docs/policies.md.");
  static_assert(DifferentiableNormaliser<typename Config::Normaliser>,
                "jrt backward: the Normaliser has no derivative. Add static T factor_derivative(T denominator) for float "
                "and double, the derivative of factor; see docs/policies.md.");
  static constexpr bool ok = true;
};

/// A row is a key followed by a value.
template <AttentionConfig Config>
inline constexpr std::int64_t staged_row_elements<Config> = Config::FeatureMap::input_dim + Config::value_dim;

}  // namespace detail

/// Arguments of prefix linear attention. B sequences, T tokens, M encoder tokens, Hq query heads, Hkv key/value heads (Hq a
/// multiple of Hkv; query head h reads key/value head h / (Hq/Hkv)), d = FeatureMap::input_dim, dv = Config::value_dim.
template <AttentionConfig Config>
struct PrefillArgs<Config> {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  TensorView<const Element> query{};                ///< (B, T, Hq, d)
  TensorView<const Element> key{};                  ///< (B, T, Hkv, d)
  TensorView<const Element> value{};                ///< (B, T, Hkv, dv)
  TensorView<const Element> key_encoder{};          ///< (B, M, Hkv, d); only with a mask that reads the encoder
  TensorView<const Element> value_encoder{};        ///< (B, M, Hkv, dv); likewise
  TensorView<Element> output{};                     ///< (B, T, Hq, dv); every row of every sequence is written
  Sequences sequences{};                            ///< lengths, prefixes and pads of the sequences
  StateSlots<Format> initial_state{};               ///< added to every sum; if omitted, sequences start empty
  StateSlots<Format> final_state{};                 ///< receives the sums after the last token; dropped if omitted
  const std::uint8_t* has_initial_state = nullptr;  ///< (B), 0 where the slot's content is to be ignored
  typename Config::FeatureMap feature_map{};        ///< run-time data of the feature map, if it has any
  /// (B, T, Hq, 1), optional, for normalised operators: receives the denominators of the outputs, φ(q)ᵀz without the
  /// normaliser's ε; 0 where there is no token. With them, outputs over disjoint sets of keys can be merged:
  /// y = (y₁ z₁ + y₂ z₂) / (z₁ + z₂).
  TensorView<detail::ConfigCompute<Config>> denominators{};
};

/// Format of the gradient of a state: as the state, row for row, in the type in which sums are formed.
template <AttentionConfig Config>
using StateGradientFormatOf = StateFormat<typename Config::FeatureMap, Config::value_dim, detail::ConfigCompute<Config>>;

/// Arguments of `backward`, in the notation of `PrefillArgs`. With dy = `output_gradient`, n = `denominators`, f the
/// normaliser's factor, v' = [v, 1] and S' = [S, z],
///
///     g_i = [f(n_i) dy_i, f'(n_i)/f(n_i) (dy_i · y_i)]                           not normalised: [dy_i, 0]
///     dφ(q_i) = S'_i g_i                                                         S'_i as in `prefill`
///     R_j = dS'_T + Σ_{i sees j} φ(q_i) g_iᵀ
///     dφ(k_j) = R_j v'_j,    dv_j = R_jᵀ φ(k_j) without its last component
///
/// and likewise for the encoder region, with the sum over all i; that sum is also the gradient of the initial state. States
/// are recomputed, not saved: of the prefill, `backward` needs the outputs and denominators alone, and those only where
/// outputs are normalised. Gradients of grouped heads are summed over their query heads. A query whose denominator is 0 (it
/// saw no key) has gradient 0.
///
/// Cost: about three times that of the prefill. Workspace as in `prefill`, with two states instead of one.
template <AttentionConfig Config>
struct BackwardArgs<Config> {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;
  using GradientFormat = StateGradientFormatOf<Config>;

  TensorView<const Element> query{};          ///< as in the prefill, like all inputs down to `feature_map`
  TensorView<const Element> key{};            ///< (B, T, Hkv, d)
  TensorView<const Element> value{};          ///< (B, T, Hkv, dv)
  TensorView<const Element> key_encoder{};    ///< (B, M, Hkv, d)
  TensorView<const Element> value_encoder{};  ///< (B, M, Hkv, dv)
  TensorView<const Element> output{};         ///< (B, T, Hq, dv), what the prefill wrote; needed if normalised
  TensorView<const detail::ConfigCompute<Config>> denominators{};  ///< (B, T, Hq, 1), likewise
  Sequences sequences{};                                           ///< lengths, prefixes and pads of the sequences
  StateSlots<Format> initial_state{};                              ///< if omitted, sequences start empty
  const std::uint8_t* has_initial_state = nullptr;                 ///< (B), 0 where the slot's content is to be ignored
  typename Config::FeatureMap feature_map{};                       ///< its run-time data gets no gradient

  TensorView<const Element> output_gradient{};        ///< (B, T, Hq, dv); required
  StateSlots<GradientFormat> final_state_gradient{};  ///< of the final state, where it has consumers; if omitted, 0

  TensorView<Element> query_gradient{};                 ///< (B, T, Hq, d), optional
  TensorView<Element> key_gradient{};                   ///< (B, T, Hkv, d), optional
  TensorView<Element> value_gradient{};                 ///< (B, T, Hkv, dv), optional
  TensorView<Element> key_encoder_gradient{};           ///< (B, M, Hkv, d), optional
  TensorView<Element> value_encoder_gradient{};         ///< (B, M, Hkv, dv), optional
  StateSlots<GradientFormat> initial_state_gradient{};  ///< receives that of the initial state; dropped if omitted
};

/// Arguments of `accumulate`, in the notation of `PrefillArgs`.
template <AttentionConfig Config>
struct AccumulateArgs<Config> {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  TensorView<const Element> key{};                  ///< (B, T, Hkv, d)
  TensorView<const Element> value{};                ///< (B, T, Hkv, dv)
  Sequences sequences{};                            ///< lengths and pads; prefixes and encoder offsets are ignored
  StateSlots<Format> initial_state{};               ///< if omitted, sequences start empty
  StateSlots<Format> final_state{};                 ///< receives initial state + sums; required
  const std::uint8_t* has_initial_state = nullptr;  ///< (B), 0 where the slot's content is to be ignored
  typename Config::FeatureMap feature_map{};
};

/// Arguments of `decode_step`, in the notation of `PrefillArgs`; T is the number of new tokens, usually 1.
template <AttentionConfig Config>
struct DecodeArgs<Config> {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  TensorView<const Element> query{};              ///< (B, T, Hq, d)
  TensorView<const Element> key{};                ///< (B, T, Hkv, d)
  TensorView<const Element> value{};              ///< (B, T, Hkv, dv)
  TensorView<Element> output{};                   ///< (B, T, Hq, dv)
  StateSlots<Format> source{};                    ///< the states read; required
  StateSlots<Format> destination{};               ///< receives the new states; defaults to `source`
  const std::int32_t* first_positions = nullptr;  ///< (B) tokens before this step, for maps that need the position
  typename Config::FeatureMap feature_map{};
  TensorView<detail::ConfigCompute<Config>> denominators{};  ///< (B, T, Hq, 1), optional, as in `prefill`
};

/// Arguments of `staged_step`, in the notation of `DecodeArgs`.
template <AttentionConfig Config>
struct StagedStepArgs<Config> {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  TensorView<const Element> query{};              ///< (B, T, Hq, d)
  TensorView<const Element> key{};                ///< (B, T, Hkv, d)
  TensorView<const Element> value{};              ///< (B, T, Hkv, dv)
  TensorView<Element> output{};                   ///< (B, T, Hq, dv)
  StateSlots<Format> state{};                     ///< the committed states; only read
  StagingView<Config> staging{};                  ///< receives the T new rows after the staged ones
  std::int64_t already_staged = 0;                ///< rows of every sequence staged by earlier steps since the last commit
  const std::int32_t* first_positions = nullptr;  ///< (B) committed tokens, for maps that need the position
  typename Config::FeatureMap feature_map{};
};

/// Arguments of `commit`.
template <AttentionConfig Config>
struct CommitArgs<Config> {
  using Format = StateFormatOf<Config>;

  StagingView<Config> staging{};                  ///< as the staged steps left it
  const std::int32_t* accepted_tokens = nullptr;  ///< (B) rows to add, 0 … staging.tokens; read by the executing device
  StateSlots<Format> source{};                    ///< the committed states
  StateSlots<Format> destination{};               ///< receives the new ones; defaults to `source`
  const std::int32_t* first_positions = nullptr;  ///< as in the staged steps
  typename Config::FeatureMap feature_map{};
};

}  // namespace jrt
