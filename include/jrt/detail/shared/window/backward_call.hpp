// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/host_device.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/token_range.hpp"
#include "jrt/mixer/window_attention.hpp"
#include "jrt/numeric.hpp"
#include "jrt/sequences.hpp"
#include "jrt/tensor_view.hpp"

namespace jrt::detail {

/// Whether gradients are added to those that are there, of the linear part of a hybrid mixer (shared/hybrid/gradients.hpp).
template <class Config>
inline constexpr bool adds_gradients = [] {
  if constexpr (requires { Config::adds_gradients; }) {
    return Config::adds_gradients;
  } else {
    return false;
  }
}();

/// What the backward pass of a window needs of its arguments. Tokens of a sequence are counted from 0 after its left pads.
template <WindowConfig Config>
struct WindowBackwardCall {
  using Element = typename Config::Element;

  TensorView<const Element> query{};
  TensorView<const Element> key{};
  TensorView<const Element> value{};
  TensorView<const Element> output{};
  TensorView<const ComputeType<Element>> log_sum_exp{};
  TensorView<const Element> output_gradient{};
  TensorView<Element> query_gradient{};
  TensorView<Element> key_gradient{};
  TensorView<Element> value_gradient{};
  Sequences sequences{};
  double scale = 1;
  typename Config::Rotary rotary{};

  [[nodiscard]] JRT_DETAIL_HD std::int64_t count() const { return sequence_count(sequences, query.batch); }
  [[nodiscard]] JRT_DETAIL_HD std::int64_t group() const { return query.heads / larger<std::int64_t>(key.heads, 1); }
  [[nodiscard]] JRT_DETAIL_HD bool wants_query() const { return query_gradient.data != nullptr; }
  [[nodiscard]] JRT_DETAIL_HD bool wants_key() const { return key_gradient.data != nullptr; }
  [[nodiscard]] JRT_DETAIL_HD bool wants_value() const { return value_gradient.data != nullptr; }
  [[nodiscard]] JRT_DETAIL_HD SequenceSpan span(std::int64_t b) const {
    return within_views(sequence_span(sequences, b, query.tokens, 0), query.tokens, 0);
  }
};

template <class Config>
WindowBackwardCall<Config> window_call(const BackwardArgs<Config>& args) {
  return {
      args.query,          args.key,          args.value,          args.output,    args.log_sum_exp, args.output_gradient,
      args.query_gradient, args.key_gradient, args.value_gradient, args.sequences, args.scale,       args.rotary};
}

}  // namespace jrt::detail
