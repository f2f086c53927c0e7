// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>

#include "jrt/detail/check_arguments.hpp"
#include "jrt/window_attention.hpp"

/// What makes the arguments of the window operations valid; `*_shapes` and `*_arrays` as in check_arguments.hpp.
namespace jrt::detail {

template <WindowConfig Config, class Args>
void check_window_views(Checker& check, const char* operation, const Args& args) {
  check.view("query", args.query, Config::head_dim);
  check.view("key", args.key, Config::head_dim);
  check.view("value", args.value, Config::value_dim);
  check.view("output", args.output, Config::value_dim);
  check.same_tokens("key", args.key, "query's", args.query);
  check.same_tokens("value", args.value, "query's", args.query);
  check.same_tokens("output", args.output, "query's", args.query);
  check.equal("value", "heads", args.value.heads, args.key.heads, "key's");
  check.equal("output", "heads", args.output.heads, args.query.heads, "query's");
  check.multiple("query", "heads", args.query.heads, args.key.heads, "the heads of 'key'");
  check.rows_apart("output", args.output);
  if (check.ok() && !std::isfinite(args.scale)) {
    check.take(Status::error(StatusCode::invalid_argument, "%s: argument 'scale' is %g, but must be a finite number.",
                             operation, args.scale));
  }
}

template <WindowConfig Config>
Status check_shapes(const PrefillArgs<Config>& args) {
  Checker check("prefill");
  check_window_views<Config>(check, "prefill", args);
  check.sequence_shapes(args.sequences, args.query.batch);
  check_state(check, "initial_state", args.initial_state, args.key.heads);
  check_state(check, "final_state", args.final_state, args.key.heads);
  if (args.has_initial_state != nullptr) {
    check.not_null("initial_state", args.initial_state.pool.data);
  }
  return check.status();
}
template <WindowConfig Config>
Status check_arrays(const PrefillArgs<Config>& args) {
  Checker check("prefill");
  const std::int64_t count = sequence_count(args.sequences, args.query.batch);
  check_slot_arrays(check, "initial_state.slots", args.initial_state, args.has_initial_state, "final_state.slots",
                    args.final_state, count);
  check.sequence_arrays(args.sequences, count, args.query.tokens, 0, false, INT64_MAX / 2, [&](std::int64_t b) {
    return sequence_skipped(args.initial_state, args.has_initial_state, args.final_state, b);
  });
  return check.status();
}

template <WindowConfig Config>
Status check_shapes(const DecodeArgs<Config>& args) {
  Checker check("decode_step");
  check_window_views<Config>(check, "decode_step", args);
  check.pool("source", args.source.pool, args.key.heads);
  check_state(check, "destination", args.destination, args.key.heads);
  return check.status();
}
template <WindowConfig Config>
Status check_arrays(const DecodeArgs<Config>& args) {
  Checker check("decode_step");
  check_slot_arrays(check, "source.slots", args.source, nullptr,
                    args.destination.empty() ? "source.slots" : "destination.slots", destination_of(args),
                    args.query.batch);
  return check.status();
}

template <WindowConfig Config>
Status check_shapes(const StagedStepArgs<Config>& args) {
  Checker check("staged_step");
  check_window_views<Config>(check, "staged_step", args);
  check.pool("state", args.state.pool, args.key.heads);
  check_staging(check, args.staging);
  check.equal("staging", "sequences", args.staging.sequences, args.query.batch, "query's batch");
  check.equal("staging", "heads", args.staging.heads, args.key.heads, "key's heads");
  check.at_least("already_staged", "value", args.already_staged, 0);
  check.at_least("staging", "tokens", args.staging.tokens, args.already_staged);
  if (check.ok()) {
    check.at_least("staging", "tokens left", args.staging.tokens - args.already_staged, args.query.tokens);
  }
  return check.status();
}
template <WindowConfig Config>
Status check_arrays(const StagedStepArgs<Config>& args) {
  Checker check("staged_step");
  for (std::int64_t b = 0; b < args.query.batch; ++b) {
    check.slot("state.slots", args.state, b);
  }
  return check.status();
}

template <WindowConfig Config>
Status check_shapes(const CommitArgs<Config>& args) {
  Checker check("commit");
  check_staging(check, args.staging);
  check.not_null("accepted_tokens", args.accepted_tokens);
  check.pool("source", args.source.pool, args.staging.heads);
  check_state(check, "destination", args.destination, args.staging.heads);
  return check.status();
}
template <WindowConfig Config>
Status check_arrays(const CommitArgs<Config>& args) {
  Checker check("commit");
  const auto& destination = destination_of(args);
  check_slot_arrays(check, "source.slots", args.source, nullptr,
                    args.destination.empty() ? "source.slots" : "destination.slots", destination, args.staging.sequences);
  for (std::int64_t b = 0; check.ok() && b < args.staging.sequences; ++b) {
    if (!sequence_skipped(args.source, nullptr, destination, b)) {
      check.entry("accepted_tokens", b, args.accepted_tokens[b], 0, args.staging.tokens, "the staging buffer's tokens");
    }
  }
  return check.status();
}

}  // namespace jrt::detail
