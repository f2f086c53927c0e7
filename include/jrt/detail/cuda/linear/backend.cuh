// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/backend.hpp"
#include "jrt/detail/check/linear.hpp"
#include "jrt/detail/check/linear_backward.hpp"
#include "jrt/detail/cuda/linear/backward.cuh"
#include "jrt/detail/cuda/linear/prefill.cuh"
#include "jrt/detail/cuda/linear/step.cuh"
#include "jrt/detail/cuda/state/backend.cuh"
#include "jrt/detail/shared/linear/step_operator.hpp"
#include "jrt/kernels.hpp"

namespace jrt::detail {

/// Linear attention on a CUDA stream: check what the host can see, slice the workspace, launch.
template <AttentionConfig Config>
struct MixerBackend<Config, Cuda> {
  static Status check(const PrefillArgs<Config>& args) {
    Checker check("prefill");
    check.take(check_shapes(args));
    const std::int64_t count = sequence_count(args.sequences, args.query.batch);
    check_implicit_slots(check, args, count);
    check_last_position(check, "prefill", args, args.query.tokens);
    check_dense_prefix(check, args);
    return check.status();
  }
  static Status check(const AccumulateArgs<Config>& args) {
    Checker check("accumulate");
    check.take(check_shapes(args));
    const std::int64_t count = sequence_count(args.sequences, args.key.batch);
    check_implicit_slots(check, args, count);
    check_last_position(check, "accumulate", args, args.key.tokens);
    return check.status();
  }
  static Status check(const BackwardArgs<Config>& args) {
    Checker check("backward");
    check.take(check_shapes(args));
    check_implicit_slots(check, args, sequence_count(args.sequences, args.query.batch));
    check_last_position(check, "backward", args, args.query.tokens);
    check_dense_prefix(check, args);
    return check.status();
  }
  static Status check(const DecodeArgs<Config>& args) {
    Checker check("decode_step");
    check.take(check_shapes(args));
    check_implicit_slots(check, args, args.query.batch);
    check_first_positions(check, args.first_positions);
    return check.status();
  }
  static Status check(const StagedStepArgs<Config>& args) {
    Checker check("staged_step");
    check.take(check_shapes(args));
    check_implicit_slots(check, args, args.query.batch);
    check_first_positions(check, args.first_positions);
    return check.status();
  }
  static Status check(const CommitArgs<Config>& args) {
    Checker check("commit");
    check.take(check_shapes(args));
    check_implicit_slots(check, args, args.staging.sequences);
    check_first_positions(check, args.first_positions);
    return check.status();
  }

  static std::size_t workspace_bytes(const PrefillArgs<Config>& args, const Cuda& on) {
    return prefill_of(args, on).workspace_bytes();
  }
  static std::size_t workspace_bytes(const AccumulateArgs<Config>& args, const Cuda& on) {
    return accumulate_of(args, on).workspace_bytes();
  }
  static std::size_t workspace_bytes(const BackwardArgs<Config>& args, const Cuda& on) {
    return backward_of(args, on).workspace_bytes();
  }
  template <StepArgsOf<Config> Args>
  static std::size_t workspace_bytes(const Args& args, const Cuda& /*on*/) {
    return step_bytes(cuda::step_of(args));
  }

  static Status run(const PrefillArgs<Config>& args, const Workspace& workspace, const Cuda& on) {
    const Status status = check(args);
    return status.ok() ? run_work("prefill", prefill_of(args, on), workspace, on) : status;
  }
  /// Of sequences that start from states which the last kernel of the stream has made, after all that the call reads
  /// otherwise: this one may begin before that one ends. `even`: they are about equally long.
  static Status run_after_scan(const PrefillArgs<Config>& args, bool even, const Workspace& workspace, const Cuda& on) {
    const Status status = check(args);
    if (!status.ok()) {
      return status;
    }
    auto work = prefill_of(args, on);
    work.follow_scan(even);
    return run_work("prefill", work, workspace, on);
  }
  static Status run(const AccumulateArgs<Config>& args, const Workspace& workspace, const Cuda& on) {
    const Status status = check(args);
    return status.ok() ? run_work("accumulate", accumulate_of(args, on), workspace, on) : status;
  }
  /// Both at once: no state is in both. The workspace is the sum of theirs.
  static Status run(const AccumulateArgs<Config>& first, const AccumulateArgs<Config>& second, const Workspace& workspace,
                    const Cuda& on) {
    Status status = check(first);
    status = status.ok() ? check(second) : status;
    if (!status.ok()) {
      return status;
    }
    auto of_first = accumulate_of(first, on);
    auto of_second = accumulate_of(second, on);
    Checker checker("accumulate");
    checker.workspace(workspace, workspace_bytes(first, on) + workspace_bytes(second, on));
    if (!checker.ok()) {
      return checker.status();
    }
    Arena arena(workspace);
    of_first.take(arena);
    of_second.take(arena);
    return cuda::Prefill<EncoderOnly<Config>>::run_both("accumulate", of_first, of_second, on);
  }
  static Status run(const BackwardArgs<Config>& args, const Workspace& workspace, const Cuda& on) {
    const Status status = check(args);
    return status.ok() ? run_work("backward", backward_of(args, on), workspace, on) : status;
  }
  template <StepArgsOf<Config> Args>
  static Status run(const Args& args, const Workspace& workspace, const Cuda& on) {
    Checker checker(operation_name(args));
    checker.take(check(args));
    if (!checker.ok()) {
      return checker.status();
    }
    const auto call = cuda::step_of(args);
    checker.workspace(workspace, step_bytes(call));
    return checker.ok() ? cuda::launch_step(operation_name(args), call, workspace, on) : checker.status();
  }

  static KernelKinds kernels(const PrefillArgs<Config>& args, const Cuda& on) { return selected(prefill_of(args, on)); }
  static KernelKinds kernels(const AccumulateArgs<Config>& args, const Cuda& on) {
    return selected(accumulate_of(args, on));
  }
  static KernelKinds kernels(const BackwardArgs<Config>& args, const Cuda& on) { return backward_of(args, on).kernels(); }
  template <StepArgsOf<Config> Args>
  static KernelKinds kernels(const Args& /*args*/, const Cuda& /*on*/) {
    return {.ordinary_units = true};
  }

 private:
  template <class Work>
  static KernelKinds selected(Work work) {
    work.select();
    return work.kernels();
  }

  /// Checks the last position, where it follows from the views alone.
  template <class Args>
  static void check_last_position(Checker& check, const char* operation, const Args& args, std::int64_t tokens) {
    const Sequences& s = args.sequences;
    if (check.ok() && s.cu_seqlens == nullptr && s.seq_lens == nullptr && s.left_pads == nullptr &&
        s.first_positions == nullptr && tokens > max_position(args.feature_map)) {
      check.take(Status::error(StatusCode::invalid_argument,
                               "%s: sequence 0 reaches position %lld, but the feature map has max_position = %lld.",
                               operation, static_cast<long long>(tokens),
                               static_cast<long long>(max_position(args.feature_map))));
    }
  }

  static void check_first_positions(Checker& check, const std::int32_t* first_positions) {
    if constexpr (Config::FeatureMap::needs_position) {
      check.not_null("first_positions (the feature map needs the position)", first_positions);
    }
  }

  static cuda::Prefill<Config> prefill_of(const PrefillArgs<Config>& args, const Cuda& on) {
    return {args, sequence_count(args.sequences, args.query.batch), args.key.heads, on};
  }
  static cuda::Prefill<EncoderOnly<Config>> accumulate_of(const AccumulateArgs<Config>& args, const Cuda& on) {
    return {as_encoder(args), sequence_count(args.sequences, args.key.batch), args.key.heads, on};
  }

  static cuda::Backward<Config> backward_of(const BackwardArgs<Config>& args, const Cuda& on) {
    return {args, sequence_count(args.sequences, args.query.batch), on};
  }

  template <class Work>
  static Status run_work(const char* operation, Work work, const Workspace& workspace, const Cuda& on) {
    Checker check(operation);
    check.workspace(workspace, work.workspace_bytes());
    if (!check.ok()) {
      return check.status();
    }
    Arena arena(workspace);
    work.take(arena);
    return work.run(operation, on);
  }

  static std::size_t step_bytes(const cuda::StepCall<StepOnly<Config>>& call) {
    Arena counting;
    counting.take<ConfigCompute<Config>>(call.sum_elements());
    return counting.bytes_needed();
  }
};

}  // namespace jrt::detail
