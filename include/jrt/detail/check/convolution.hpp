// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/check/erased.hpp"
#include "jrt/detail/check/mixer.hpp"
#include "jrt/detail/shared/convolution/gradients.hpp"
#include "jrt/mixer/gated_convolution.hpp"
#include "jrt/sequences.hpp"

/// What makes the arguments of the convolution's operations valid; `check_shapes` and `check_arrays` as in mixer.hpp.
namespace jrt::detail {

/// One of the views of channels: a head as wide as the input.
inline void check_channel_view(Checker& check, const char* argument, const AnyView& view, const AnyView& input) {
  check.given(argument, view, "heads", 1, "the number of a convolution's");
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

/// Inputs, gates and weights of any operation on tokens.
template <class Args>
void check_channel_inputs(Checker& check, const Args& args) {
  check_channel_view(check, "input", args.input, args.input);
  check.at_least("input", "dim", args.input.dim, 1);
  if (has_gate(args.gate)) {
    check_channel_view(check, "gate", args.gate, args.input);
  }
  check.not_null("weight", args.weight);
  check.aligned("weight", args.weight, alignof(typename Args::Weight));
  check.aligned("bias", args.bias, alignof(typename Args::Weight));
}

/// The same and the outputs of a prefill or a step.
template <class Args>
void check_channels(Checker& check, const Args& args) {
  check_channel_inputs(check, args);
  check_channel_view(check, "output", args.output, args.input);
  check.rows_apart("output", args.output);
}

template <ConvolutionConfig Config>
Status check_shapes(const PrefillArgs<Config>& args) {
  Checker check(operation_name(args));
  check_channels(check, args);
  check.sequence_shapes(args.sequences, args.input.batch);
  check_prefill_states(check, args, args.input.dim);
  return check.status();
}
template <ConvolutionConfig Config>
Status check_arrays(const PrefillArgs<Config>& args) {
  Checker check(operation_name(args));
  check_plain_prefill_arrays(check, args, args.input.batch, args.input.tokens);
  return check.status();
}

/// A gradient of a view, if it is wanted.
inline void check_view_gradient(Checker& check, const char* argument, const AnyView& gradient, const AnyView& input) {
  if (gradient.is_given()) {
    check_channel_view(check, argument, gradient, input);
    check.rows_apart(argument, gradient);
  }
}

template <ConvolutionConfig Config>
Status check_shapes(const BackwardArgs<Config>& args) {
  static_assert(CheckedConvolutionBackward<Config>::ok);
  using Weight = typename Config::Weight;
  Checker check(operation_name(args));
  check_channel_inputs(check, args);
  check_channel_view(check, "output_gradient", args.output_gradient, args.input);
  check.sequence_shapes(args.sequences, args.input.batch);
  check_gradient_states(check, args, args.input.dim);
  check_view_gradient(check, "input_gradient", args.input_gradient, args.input);
  if (Checker::is_given(args.gate_gradient)) {
    check.given("gate", args.gate, "heads", 1, "that of gate_gradient");
  }
  check_view_gradient(check, "gate_gradient", args.gate_gradient, args.input);
  check.aligned("weight_gradient", args.weight_gradient, alignof(Weight));
  check.aligned("bias_gradient", args.bias_gradient, alignof(Weight));
  return check.status();
}

template <ConvolutionConfig Config>
Status check_arrays(const BackwardArgs<Config>& args) {
  Checker check(operation_name(args));
  const std::int64_t count = sequences_of(args);
  check_gradient_slots(check, args, count);
  Sequences sequences = args.sequences;
  sequences.cu_encoder_seqlens = nullptr;
  sequences.prefix_lens = nullptr;
  sequences.first_positions = nullptr;
  check.sequence_arrays(sequences, count, args.input.tokens, 0, false, INT64_MAX / 2,
                        [&](std::int64_t b) { return gradients_skipped(args, b); });
  return check.status();
}

template <ConvolutionConfig Config>
Status check_shapes(const DecodeArgs<Config>& args) {
  Checker check(operation_name(args));
  check_channels(check, args);
  check_step_states(check, args, args.input.dim);
  return check.status();
}
template <ConvolutionConfig Config>
Status check_arrays(const DecodeArgs<Config>& args) {
  Checker check(operation_name(args));
  check_step_slots(check, args, args.input.batch);
  return check.status();
}

template <ConvolutionConfig Config>
Status check_shapes(const StagedStepArgs<Config>& args) {
  Checker check(operation_name(args));
  check_channels(check, args);
  check_staged(check, args, {args.input.batch, "input's batch", args.input.tokens, args.input.dim, "input's dim"});
  return check.status();
}
template <ConvolutionConfig Config>
Status check_arrays(const StagedStepArgs<Config>& args) {
  Checker check(operation_name(args));
  check_staged_slots(check, args, args.input.batch);
  return check.status();
}

template <ConvolutionConfig Config>
Status check_shapes(const CommitArgs<Config>& args) {
  Checker check(operation_name(args));
  check_commit(check, args);
  return check.status();
}
template <ConvolutionConfig Config>
Status check_arrays(const CommitArgs<Config>& args) {
  Checker check(operation_name(args));
  check_commit_arrays(check, args);
  return check.status();
}

}  // namespace jrt::detail
