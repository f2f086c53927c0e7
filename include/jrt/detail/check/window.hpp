// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>

#include "jrt/detail/check/linear.hpp"
#include "jrt/mixer/window_attention.hpp"

/// What makes the arguments of the window operations valid; `check_shapes` and `check_arrays` as in mixer.hpp.
namespace jrt::detail {

/// The scale of a call's scores.
template <class Args>
void check_scale(Checker& check, const Args& args) {
  if (check.ok() && !std::isfinite(args.scale)) {
    check.take(Status::error(StatusCode::invalid_argument, "%s: argument 'scale' is %g, but must be a finite number.",
                             operation_name(args), args.scale));
  }
}

template <WindowConfig Config, class Args>
void check_window_views(Checker& check, const Args& args) {
  check_token_views(check, args, Config::head_dim, Config::value_dim);
  check_scale(check, args);
}

template <WindowConfig Config>
Status check_shapes(const PrefillArgs<Config>& args) {
  Checker check(operation_name(args));
  check_window_views<Config>(check, args);
  const NamedView queries{args.query, "query's"};
  check_optional_output(check, "log_sum_exp", args.log_sum_exp, queries, queries, 1);
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

/// Gradients do not pass through a window's cache.
template <class Args>
void check_starts_without_cache(Checker& check, const Args& args) {
  if (check.ok() && (!args.initial_state.empty() || args.initial_state.slots != nullptr)) {
    check.take(Status::error(StatusCode::invalid_argument,
                             "%s: argument 'initial_state' is given, but gradients through a window's cache are not "
                             "supported. Leave it out, and "
                             "run the prefill over whole sequences instead of pieces that continue from a cache.",
                             operation_name(args)));
  }
}

template <WindowConfig Config>
Status check_shapes(const BackwardArgs<Config>& args) {
  Checker check(operation_name(args));
  check_inputs(check, args.query, args.key, args.value, Config::head_dim, Config::value_dim);
  const NamedView queries{args.query, "query's"};
  const NamedView keys{args.key, "key's"};
  check_beside(check, "output", args.output, queries, queries, Config::value_dim);
  check_beside(check, "log_sum_exp", args.log_sum_exp, queries, queries, 1);
  check_beside(check, "output_gradient", args.output_gradient, queries, queries, Config::value_dim);
  check_scale(check, args);
  check_optional_output(check, "query_gradient", args.query_gradient, queries, queries, Config::head_dim);
  check_optional_output(check, "key_gradient", args.key_gradient, queries, keys, Config::head_dim);
  check_optional_output(check, "value_gradient", args.value_gradient, queries, keys, Config::value_dim);
  check.sequence_shapes(args.sequences, args.query.batch);
  check.at_least("sequences.max_tokens", "value", args.sequences.max_tokens, 0);
  check_starts_without_cache(check, args);
  return check.status();
}
template <WindowConfig Config>
Status check_arrays(const BackwardArgs<Config>& args) {
  Checker check(operation_name(args));
  Sequences sequences = args.sequences;
  sequences.cu_encoder_seqlens = nullptr;
  sequences.prefix_lens = nullptr;
  sequences.first_positions = nullptr;
  check.sequence_arrays(sequences, sequence_count(sequences, args.query.batch), args.query.tokens, 0, false, INT64_MAX / 2,
                        [](std::int64_t) { return false; });
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
