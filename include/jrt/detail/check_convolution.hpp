// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/check.hpp"
#include "jrt/detail/check_arguments.hpp"
#include "jrt/gated_convolution.hpp"

/// What makes the arguments of the convolution's operations valid; see check_arguments.hpp.
namespace jrt::detail {

/// One of the views of channels: a head as wide as the input.
template <class T, class Input>
void check_channel_view(Checker& check, const char* argument, const TensorView<T>& view, const TensorView<Input>& input) {
  check.view(argument, view, view.dim);
  check.equal(argument, "heads", view.heads, 1, "the number of a convolution's");
  check.equal(argument, "dim", view.dim, input.dim, "input's");
  check.same_tokens(argument, view, "input's", input);
}

/// Whether a call gates its outputs. An empty view of no tokens is as good as none.
template <class E>
bool has_gate(const TensorView<const E>& gate) {
  return gate.data != nullptr || gate.tokens != 0;
}

/// Inputs, gates, outputs and weights of a prefill or a step.
template <class Args>
void check_channels(Checker& check, const Args& args) {
  check_channel_view(check, "input", args.input, args.input);
  check.at_least("input", "dim", args.input.dim, 1);
  if (has_gate(args.gate)) {
    check_channel_view(check, "gate", args.gate, args.input);
  }
  check_channel_view(check, "output", args.output, args.input);
  check.rows_apart("output", args.output);
  check.not_null("weight", args.weight);
  check.aligned("weight", args.weight, alignof(typename Args::Weight));
  check.aligned("bias", args.bias, alignof(typename Args::Weight));
}

template <ConvolutionConfig Config>
Status check_prefill_shapes(const PrefillArgs<Config>& args) {
  Checker check("prefill");
  check_channels(check, args);
  check.sequence_shapes(args.sequences, args.input.batch);
  check_state(check, "initial_state", args.initial_state, args.input.dim);
  check_state(check, "final_state", args.final_state, args.input.dim);
  if (args.has_initial_state != nullptr) {
    check.not_null("initial_state", args.initial_state.pool.data);
  }
  return check.status();
}

template <ConvolutionConfig Config>
Status check_prefill_arrays(const PrefillArgs<Config>& args) {
  Checker check("prefill");
  const std::int64_t count = sequence_count(args.sequences, args.input.batch);
  check_slot_arrays(check, "initial_state.slots", args.initial_state, args.has_initial_state, "final_state.slots",
                    args.final_state, count);
  // Prefixes and positions mean nothing here.
  Sequences sequences = args.sequences;
  sequences.cu_encoder_seqlens = nullptr;
  sequences.prefix_lens = nullptr;
  sequences.first_positions = nullptr;
  check.sequence_arrays(sequences, count, args.input.tokens, 0, false, INT64_MAX / 2, [&](std::int64_t b) {
    return sequence_skipped(args.initial_state, args.has_initial_state, args.final_state, b);
  });
  return check.status();
}

template <ConvolutionConfig Config>
Status check_decode_shapes(const DecodeArgs<Config>& args) {
  Checker check("decode_step");
  check_channels(check, args);
  check.pool("source", args.source.pool, args.input.dim);
  check_state(check, "destination", args.destination, args.input.dim);
  return check.status();
}

template <ConvolutionConfig Config>
Status check_decode_arrays(const DecodeArgs<Config>& args) {
  Checker check("decode_step");
  check_slot_arrays(check, "source.slots", args.source, nullptr,
                    args.destination.empty() ? "source.slots" : "destination.slots", destination_of(args),
                    args.input.batch);
  return check.status();
}

template <ConvolutionConfig Config>
void check_staging(Checker& check, const StagingView<Config>& staging) {
  check.at_least("staging", "sequences", staging.sequences, 0);
  check.at_least("staging", "tokens", staging.tokens, 0);
  check.at_least("staging", "heads", staging.heads, 1);
  if (staging.sequences > 0 && staging.tokens > 0) {
    check.not_null("staging", staging.data);
    check.aligned("staging", staging.data, alignof(typename Config::Element));
  }
}

template <ConvolutionConfig Config>
Status check_staged_shapes(const StagedStepArgs<Config>& args) {
  Checker check("staged_step");
  check_channels(check, args);
  check.pool("state", args.state.pool, args.input.dim);
  check_staging(check, args.staging);
  check.equal("staging", "sequences", args.staging.sequences, args.input.batch, "input's batch");
  check.equal("staging", "heads", args.staging.heads, args.input.dim, "input's dim");
  check.at_least("already_staged", "value", args.already_staged, 0);
  check.at_least("staging", "tokens", args.staging.tokens, args.already_staged);
  if (check.ok()) {
    check.at_least("staging", "tokens left", args.staging.tokens - args.already_staged, args.input.tokens);
  }
  return check.status();
}

template <ConvolutionConfig Config>
Status check_staged_arrays(const StagedStepArgs<Config>& args) {
  Checker check("staged_step");
  for (std::int64_t b = 0; b < args.input.batch; ++b) {
    check.slot("state.slots", args.state, b);
  }
  return check.status();
}

template <ConvolutionConfig Config>
Status check_commit_shapes(const CommitArgs<Config>& args) {
  Checker check("commit");
  check_staging(check, args.staging);
  check.not_null("accepted_tokens", args.accepted_tokens);
  check.pool("source", args.source.pool, args.staging.heads);
  check_state(check, "destination", args.destination, args.staging.heads);
  return check.status();
}

template <ConvolutionConfig Config>
Status check_commit_arrays(const CommitArgs<Config>& args) {
  Checker check("commit");
  const std::int64_t count = args.staging.sequences;
  const auto& destination = destination_of(args);
  check_slot_arrays(check, "source.slots", args.source, nullptr,
                    args.destination.empty() ? "source.slots" : "destination.slots", destination, count);
  for (std::int64_t b = 0; check.ok() && b < count; ++b) {
    if (!sequence_skipped(args.source, nullptr, destination, b)) {
      check.entry("accepted_tokens", b, args.accepted_tokens[b], 0, args.staging.tokens, "the staging buffer's tokens");
    }
  }
  return check.status();
}

}  // namespace jrt::detail
