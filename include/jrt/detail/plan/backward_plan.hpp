// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/host_device.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/prefill_plan.hpp"
#include "jrt/detail/plan/token_range.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/state.hpp"

/// The integer arithmetic of a backward pass: that of the prefill whose gradients it computes.
namespace jrt::detail {

/// The prefill's inputs.
template <class Config>
PrefillArgs<Config> inputs_of(const BackwardArgs<Config>& args) {
  static_assert(CheckedBackward<Config>::ok);
  PrefillArgs<Config> inputs;
  inputs.query = args.query;
  inputs.key = args.key;
  inputs.value = args.value;
  inputs.key_encoder = args.key_encoder;
  inputs.value_encoder = args.value_encoder;
  inputs.sequences = args.sequences;
  inputs.initial_state = args.initial_state;
  inputs.has_initial_state = args.has_initial_state;
  inputs.feature_map = args.feature_map;
  return inputs;
}

/// The tokens of a range that have a key; with delayed keys, the first ones of a sequence have none.
template <class Config>
JRT_DETAIL_HD constexpr TokenRange with_key(const PrefillPlan& plan, const TokenRange& range) {
  return {clamped(plan.tokens.begin + key_delay<Config>, range.begin, range.end), range.end};
}
/// The keys that have a gradient: the last ones of a sequence may be no token's.
template <class Config>
JRT_DETAIL_HD constexpr TokenRange keys_with_gradient(const PrefillPlan& plan) {
  return {plan.tokens.begin, larger(plan.tokens.end - key_delay<Config>, plan.tokens.begin)};
}

/// Plan of sequence `b`; `inputs` are `inputs_of(args)`.
template <class Config>
JRT_DETAIL_HD constexpr PrefillPlan plan_backward(const BackwardArgs<Config>& args, const PrefillArgs<Config>& inputs,
                                                  const SplitLimits& limits, std::int64_t b) {
  return plan_sequence(inputs, limits, b, args.query.tokens, gradients_skipped(args, b),
                       [](const TokenRange& tokens) { return tokens; });
}

}  // namespace jrt::detail
