// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/host_device.hpp"
#include "jrt/detail/plan/prefill_plan.hpp"
#include "jrt/sequences.hpp"
#include "jrt/tensor_view.hpp"

namespace jrt::detail {

/// The keys and values of one head of one sequence, and which of its tokens have padded keys that are treated as zero.
template <class Element>
struct KeySource {
  TensorView<const Element> key;
  TensorView<const Element> value;
  std::int64_t row = 0;    // batch row of the views
  std::int64_t first = 0;  // the sequence's token 0 in that row
  std::int64_t head = 0;
  std::int64_t zero_keys = 0;  // leading tokens whose key is treated as zero
  SequenceSpan span;

  [[nodiscard]] JRT_DETAIL_HD const Element* key_row(std::int64_t token) const { return key.row(row, first + token, head); }
  [[nodiscard]] JRT_DETAIL_HD const Element* value_row(std::int64_t token) const {
    return value.row(row, first + token, head);
  }
};

/// Whether an operator's keys are those evicted from a window; shared/hybrid/evicted_keys.hpp has their source.
template <class Config>
inline constexpr bool consumes_evicted_keys = [] {
  if constexpr (requires { Config::consumes_evicted_keys; }) {
    return Config::consumes_evicted_keys;
  } else {
    return false;
  }
}();

/// The arguments of an operator's kernels: those of its prefill. shared/hybrid/linear_part.hpp adds what the linear part of
/// a hybrid mixer needs.
template <class Config>
struct PrefillInput {
  using type = PrefillArgs<Config>;
};
template <class Config>
using PrefillInputOf = typename PrefillInput<Config>::type;

/// Whether a hybrid mixer continues from an operator's outputs, and writes those of padding.
template <class Config>
inline constexpr bool is_linear_part = !std::is_same_v<PrefillInputOf<Config>, PrefillArgs<Config>>;

/// Keys and values of the sequence's own tokens, or of its encoder region. Where keys are delayed (`key_delay`), token i
/// has key i − delay.
template <class Config>
JRT_DETAIL_HD KeySource<typename Config::Element> token_source(const PrefillArgs<Config>& args, const PrefillPlan& plan,
                                                               std::int64_t head) {
  return {
      args.key, args.value, plan.span.batch_row, plan.span.first_token - key_delay<Config>, head, zero_keys<Config>(plan),
      plan.span};
}
template <class Config>
JRT_DETAIL_HD KeySource<typename Config::Element> encoder_source(const PrefillArgs<Config>& args, const PrefillPlan& plan,
                                                                 std::int64_t head) {
  return {args.key_encoder,        args.value_encoder, plan.span.encoder_row, plan.span.encoder_first, head,
          zero_keys<Config>(plan), plan.span};
}

}  // namespace jrt::detail
