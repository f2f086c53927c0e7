// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/check/erased.hpp"
#include "jrt/detail/check/linear.hpp"
#include "jrt/detail/check/mixer.hpp"
#include "jrt/detail/plan/backward_plan.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/sequences.hpp"

/// What makes the arguments of linear attention's backward pass valid; `check_shapes` and `check_arrays` as in mixer.hpp.
namespace jrt::detail {

/// A gradient that may be left out; otherwise it has the shape of `input`.
inline void check_gradient(Checker& check, const char* argument, const AnyView& gradient, const char* input_name,
                           const AnyView& input) {
  if (gradient.is_given()) {
    check.view(argument, gradient, input.dim);
    check.same_tokens(argument, gradient, input_name, input);
    check.equal(argument, "heads", gradient.heads, input.heads, input_name);
    check.rows_apart(argument, gradient);
  }
}

template <AttentionConfig Config>
Status check_shapes(const BackwardArgs<Config>& args) {
  constexpr int head_dim = Config::FeatureMap::input_dim;
  constexpr int value_dim = Config::value_dim;
  Checker check("backward");
  check.take(check_map(args.feature_map));
  check_inputs(check, args.query, args.key, args.value, head_dim, value_dim);
  if constexpr (Config::Normaliser::uses_denominator) {
    check_beside_query(check, "output", args.output, args.query, args.query.heads, "query's", value_dim);
    check_beside_query(check, "denominators", args.denominators, args.query, args.query.heads, "query's", 1);
  } else {
    check.equal("denominators", "tokens", args.denominators.tokens, 0, "what an operator that is not normalised has");
  }
  check_beside_query(check, "output_gradient", args.output_gradient, args.query, args.query.heads, "query's", value_dim);
  check.sequence_shapes(args.sequences, args.query.batch);
  if constexpr (Config::Mask::reads_encoder) {
    check_encoder_views(check, args.key_encoder, args.value_encoder, args.sequences, args.query.batch, args.key.heads,
                        head_dim, value_dim);
  } else {
    check.equal("key_encoder", "tokens", args.key_encoder.tokens, 0, "what a mask without encoder region reads");
    check.equal("value_encoder", "tokens", args.value_encoder.tokens, 0, "what a mask without encoder region reads");
  }
  check_gradient(check, "query_gradient", args.query_gradient, "query's", args.query);
  check_gradient(check, "key_gradient", args.key_gradient, "key's", args.key);
  check_gradient(check, "value_gradient", args.value_gradient, "value's", args.value);
  if (args.key_encoder.tokens == 0) {
    check.equal("key_encoder_gradient", "tokens", args.key_encoder_gradient.tokens, 0, "key_encoder's");
    check.equal("value_encoder_gradient", "tokens", args.value_encoder_gradient.tokens, 0, "value_encoder's");
  } else {
    check_gradient(check, "key_encoder_gradient", args.key_encoder_gradient, "key_encoder's", args.key_encoder);
    check_gradient(check, "value_encoder_gradient", args.value_encoder_gradient, "value_encoder's", args.value_encoder);
  }
  check_state(check, "initial_state", args.initial_state, args.key.heads);
  check_state(check, "final_state_gradient", args.final_state_gradient, args.key.heads);
  check_state(check, "initial_state_gradient", args.initial_state_gradient, args.key.heads);
  if (args.has_initial_state != nullptr) {
    check.not_null("initial_state", args.initial_state.pool.data);
  }
  if (Config::FeatureMap::needs_position && !args.initial_state.empty()) {
    check.not_null("sequences.first_positions (the feature map needs the position)", args.sequences.first_positions);
  }
  return check.status();
}

template <AttentionConfig Config>
Status check_arrays(const BackwardArgs<Config>& args) {
  Checker check("backward");
  const std::int64_t count = sequence_count(args.sequences, args.query.batch);
  check_slot_arrays(check, "initial_state.slots", args.initial_state, args.has_initial_state,
                    "initial_state_gradient.slots", args.initial_state_gradient, count);
  check_slot_arrays(check, "final_state_gradient.slots", args.final_state_gradient, nullptr, "initial_state_gradient.slots",
                    args.initial_state_gradient, count);
  check.sequence_arrays(args.sequences, count, args.query.tokens, args.key_encoder.tokens, Config::Mask::reads_encoder,
                        max_position(args.feature_map), [&](std::int64_t b) { return backward_skipped(args, b); });
  return check.status();
}

}  // namespace jrt::detail
