// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/check/erased.hpp"
#include "jrt/detail/check/linear.hpp"
#include "jrt/detail/check/mixer.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/sequences.hpp"

/// What makes the arguments of linear attention's backward pass valid; `check_shapes` and `check_arrays` as in mixer.hpp.
namespace jrt::detail {

/// Views for gradients of queries, keys and values, the encoder region's too; the call may have any of them.
template <class Args>
void check_gradient_views(Checker& check, const Args& args) {
  const NamedView queries{args.query, "query's"};
  const auto gradient = [&](const char* argument, const AnyView& view, const NamedView& input) {
    check_optional_output(check, argument, view, input, input, static_cast<int>(input.view.dim));
  };
  gradient("query_gradient", args.query_gradient, queries);
  gradient("key_gradient", args.key_gradient, {args.key, "key's"});
  gradient("value_gradient", args.value_gradient, {args.value, "value's"});
  if (args.key_encoder.tokens == 0) {
    check.equal("key_encoder_gradient", "tokens", args.key_encoder_gradient.tokens, 0, "key_encoder's");
    check.equal("value_encoder_gradient", "tokens", args.value_encoder_gradient.tokens, 0, "value_encoder's");
  } else {
    gradient("key_encoder_gradient", args.key_encoder_gradient, {args.key_encoder, "key_encoder's"});
    gradient("value_encoder_gradient", args.value_encoder_gradient, {args.value_encoder, "value_encoder's"});
  }
}

template <AttentionConfig Config>
Status check_shapes(const BackwardArgs<Config>& args) {
  constexpr int head_dim = Config::FeatureMap::input_dim;
  constexpr int value_dim = Config::value_dim;
  static_assert(CheckedBackward<Config>::ok);
  Checker check("backward");
  check.take(check_map(args.feature_map));
  check_inputs(check, args.query, args.key, args.value, head_dim, value_dim);
  const NamedView queries{args.query, "query's"};
  if constexpr (Config::Normaliser::uses_denominator) {
    check_beside(check, "output", args.output, queries, queries, value_dim);
    check_beside(check, "denominators", args.denominators, queries, queries, 1);
  } else {
    check.equal("denominators", "tokens", args.denominators.tokens, 0, "what an operator that is not normalised has");
  }
  check_beside(check, "output_gradient", args.output_gradient, queries, queries, value_dim);
  check_sequences<Config>(check, args);
  check_gradient_views(check, args);
  check_gradient_states(check, args, args.key.heads);
  check_continued_positions<Config>(check, args);
  return check.status();
}

template <AttentionConfig Config>
Status check_arrays(const BackwardArgs<Config>& args) {
  Checker check("backward");
  const std::int64_t count = sequence_count(args.sequences, args.query.batch);
  check_gradient_slots(check, args, count);
  check.sequence_arrays(args.sequences, count, args.query.tokens, args.key_encoder.tokens, Config::Mask::reads_encoder,
                        max_position(args.feature_map), [&](std::int64_t b) { return gradients_skipped(args, b); });
  return check.status();
}

}  // namespace jrt::detail
