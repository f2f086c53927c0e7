// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>

#include "jrt/detail/check/linear.hpp"
#include "jrt/mixer/window_attention.hpp"

/// What makes the arguments of the window operations valid; `check_shapes` and `check_arrays` as in mixer.hpp.
namespace jrt::detail {

template <WindowConfig Config, class Args>
void check_window_views(Checker& check, const Args& args) {
  check_token_views(check, args, Config::head_dim, Config::value_dim);
  if (check.ok() && !std::isfinite(args.scale)) {
    check.take(Status::error(StatusCode::invalid_argument, "%s: argument 'scale' is %g, but must be a finite number.",
                             operation_name(args), args.scale));
  }
}

template <WindowConfig Config>
Status check_shapes(const PrefillArgs<Config>& args) {
  Checker check(operation_name(args));
  check_window_views<Config>(check, args);
  check.sequence_shapes(args.sequences, args.query.batch);
  check_prefill_states(check, args, args.key.heads);
  return check.status();
}
template <WindowConfig Config>
Status check_arrays(const PrefillArgs<Config>& args) {
  Checker check(operation_name(args));
  check_plain_prefill_arrays(check, args, args.query.batch, args.query.tokens);
  return check.status();
}

template <WindowConfig Config>
Status check_shapes(const DecodeArgs<Config>& args) {
  Checker check(operation_name(args));
  check_window_views<Config>(check, args);
  check_step_states(check, args, args.key.heads);
  return check.status();
}
template <WindowConfig Config>
Status check_arrays(const DecodeArgs<Config>& args) {
  Checker check(operation_name(args));
  check_step_slots(check, args, args.query.batch);
  return check.status();
}

template <WindowConfig Config>
Status check_shapes(const StagedStepArgs<Config>& args) {
  Checker check(operation_name(args));
  check_window_views<Config>(check, args);
  check_staged(check, args, {args.query.batch, "query's batch", args.query.tokens, args.key.heads, "key's heads"});
  return check.status();
}
template <WindowConfig Config>
Status check_arrays(const StagedStepArgs<Config>& args) {
  Checker check(operation_name(args));
  check_staged_slots(check, args, args.query.batch);
  return check.status();
}

template <WindowConfig Config>
Status check_shapes(const CommitArgs<Config>& args) {
  Checker check(operation_name(args));
  check_commit(check, args);
  return check.status();
}
template <WindowConfig Config>
Status check_arrays(const CommitArgs<Config>& args) {
  Checker check(operation_name(args));
  check_commit_arrays(check, args);
  return check.status();
}

}  // namespace jrt::detail
