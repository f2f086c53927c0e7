// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/check/linear.hpp"
#include "jrt/detail/check/linear_backward.hpp"
#include "jrt/detail/check/window.hpp"
#include "jrt/mixer/hybrid_attention.hpp"

/// What makes the arguments of linear and window attention in one mixer valid; `check_shapes` and `check_arrays` as in
/// mixer.hpp.
namespace jrt::detail {

template <HybridConfig Config>
Status check_shapes(const PrefillArgs<Config>& args) {
  Checker check(operation_name(args));
  check_prefill_views<typename Config::Linear>(check, args);
  const NamedView queries{args.query, "query's"};
  check_optional_output(check, "log_sum_exp", args.log_sum_exp, queries, queries, 1);
  return check.status();
}
template <HybridConfig Config>
Status check_arrays(const PrefillArgs<Config>& args) {
  Checker check(operation_name(args));
  // The ring counts positions.
  Sequences sequences = args.sequences;
  sequences.first_positions = nullptr;
  check_prefill_arrays<typename Config::Linear>(check, args, sequences);
  return check.status();
}

template <HybridConfig Config>
Status check_shapes(const BackwardArgs<Config>& args) {
  using Linear = typename Config::Linear;
  static_assert(CheckedBackward<Linear>::ok);
  Checker check(operation_name(args));
  check.take(check_map(args.feature_map));
  check_inputs(check, args.query, args.key, args.value, Linear::FeatureMap::input_dim, Linear::value_dim);
  const NamedView queries{args.query, "query's"};
  check_beside(check, "output", args.output, queries, queries, Linear::value_dim);
  check_beside(check, "log_sum_exp", args.log_sum_exp, queries, queries, 1);
  check_beside(check, "output_gradient", args.output_gradient, queries, queries, Linear::value_dim);
  check_sequences<Linear>(check, args);
  check_gradient_views(check, args);
  check_starts_without_cache(check, args);
  return check.status();
}
template <HybridConfig Config>
Status check_arrays(const BackwardArgs<Config>& args) {
  Checker check(operation_name(args));
  Sequences sequences = args.sequences;
  sequences.first_positions = nullptr;
  check.sequence_arrays(sequences, sequence_count(sequences, args.query.batch), args.query.tokens, args.key_encoder.tokens,
                        Config::Linear::Mask::reads_encoder, INT64_MAX / 2, [](std::int64_t) { return false; });
  return check.status();
}

/// Tensors and feature map of a step.
template <HybridConfig Config, class Args>
void check_hybrid_tokens(Checker& check, const Args& args) {
  check.take(check_map(args.feature_map));
  check_token_views(check, args, Config::Window::head_dim, Config::Window::value_dim);
}

template <HybridConfig Config>
Status check_shapes(const DecodeArgs<Config>& args) {
  Checker check(operation_name(args));
  check_hybrid_tokens<Config>(check, args);
  check_step_states(check, args, args.key.heads);
  return check.status();
}
template <HybridConfig Config>
Status check_arrays(const DecodeArgs<Config>& args) {
  Checker check(operation_name(args));
  check_step_slots(check, args, args.query.batch);
  return check.status();
}

template <HybridConfig Config>
Status check_shapes(const StagedStepArgs<Config>& args) {
  Checker check(operation_name(args));
  check_hybrid_tokens<Config>(check, args);
  check_staged(check, args, {args.query.batch, "query's batch", args.query.tokens, args.key.heads, "key's heads"});
  return check.status();
}
template <HybridConfig Config>
Status check_arrays(const StagedStepArgs<Config>& args) {
  Checker check(operation_name(args));
  check_staged_slots(check, args, args.query.batch);
  return check.status();
}

template <HybridConfig Config>
Status check_shapes(const CommitArgs<Config>& args) {
  Checker check(operation_name(args));
  check.take(check_map(args.feature_map));
  check_commit(check, args);
  return check.status();
}
template <HybridConfig Config>
Status check_arrays(const CommitArgs<Config>& args) {
  Checker check(operation_name(args));
  check_commit_arrays(check, args);
  return check.status();
}

}  // namespace jrt::detail
