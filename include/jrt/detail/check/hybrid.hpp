// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/check/linear.hpp"
#include "jrt/mixer/hybrid_attention.hpp"

/// What makes the arguments of linear and window attention in one mixer valid; `check_shapes` and `check_arrays` as in
/// mixer.hpp.
namespace jrt::detail {

template <HybridConfig Config>
Status check_shapes(const PrefillArgs<Config>& args) {
  Checker check(operation_name(args));
  check_prefill_views<typename Config::Linear>(check, args);
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
