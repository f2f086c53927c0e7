// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/backend.hpp"
#include "jrt/detail/check/linear.hpp"
#include "jrt/detail/cuda/linear/decode.cuh"
#include "jrt/detail/cuda/linear/prefill.cuh"
#include "jrt/detail/cuda/state/backend.cuh"

namespace jrt::detail {

/// Every operation on a CUDA stream: check what the host can see, slice the workspace, launch.
template <>
struct Backend<Cuda> : cuda::StateBackend {
  static constexpr bool host_reads_arrays = false;

  // -- prefill and accumulate --------------------------------------------------------------------------------------------

  template <class Config>
  static std::size_t prefill_workspace_bytes(const PrefillArgs<Config>& args, const Cuda& on) {
    return prefill_of(args, on).workspace_bytes();
  }

  template <class Config>
  static Status prefill(const PrefillArgs<Config>& args, const Workspace& workspace, const Cuda& on) {
    const Status status = check(args);
    return status.ok() ? run_prefill("prefill", prefill_of(args, on), workspace, on) : status;
  }

  template <class Config>
  static std::size_t accumulate_workspace_bytes(const AccumulateArgs<Config>& args, const Cuda& on) {
    return accumulate_of(args, on).workspace_bytes();
  }

  template <class Config>
  static Status accumulate(const AccumulateArgs<Config>& args, const Workspace& workspace, const Cuda& on) {
    const Status status = check(args);
    return status.ok() ? run_prefill("accumulate", accumulate_of(args, on), workspace, on) : status;
  }

  // -- decoding ----------------------------------------------------------------------------------------------------------

  template <class Config>
  static std::size_t decode_workspace_bytes(const DecodeArgs<Config>& args, const Cuda& /*on*/) {
    return step_bytes(cuda::step_of(args));
  }

  template <class Config>
  static Status decode_step(const DecodeArgs<Config>& args, const Workspace& workspace, const Cuda& on) {
    return run_step("decode_step", args, workspace, on);
  }

  template <class Config>
  static std::size_t staged_workspace_bytes(const StagedStepArgs<Config>& args, const Cuda& /*on*/) {
    return step_bytes(cuda::step_of(args));
  }

  template <class Config>
  static Status staged_step(const StagedStepArgs<Config>& args, const Workspace& workspace, const Cuda& on) {
    return run_step("staged_step", args, workspace, on);
  }

  template <class Config>
  static std::size_t commit_workspace_bytes(const CommitArgs<Config>& args, const Cuda& /*on*/) {
    return step_bytes(cuda::step_of(args));
  }

  template <class Config>
  static Status commit(const CommitArgs<Config>& args, const Workspace& workspace, const Cuda& on) {
    return run_step("commit", args, workspace, on);
  }

  /// Runs `operation(workspace)` with as much memory of the stream as the arguments need; wrong arguments are reported
  /// before.
  template <class Args, class Operation>
  static Status with_owned_workspace(const Args& args, const Cuda& on, const Operation& operation) {
    const Status status = check(args);
    return status.ok() ? with_workspace(workspace_bytes(args, on), on, operation) : status;
  }

  /// Runs `operation(workspace)` with memory of the stream.
  template <class Operation>
  static Status with_workspace(std::size_t bytes, const Cuda& on, const Operation& operation) {
    return cuda::with_stream_workspace("workspace", bytes, on, operation);
  }

  // -- what the host can see of arguments --------------------------------------------------------------------------------

  template <class Config>
  static Status check(const PrefillArgs<Config>& args) {
    Checker check("prefill");
    check.take(check_shapes(args));
    const std::int64_t count = sequence_count(args.sequences, args.query.batch);
    check_implicit_slots(check, args, count);
    check_last_position(check, "prefill", args, args.query.tokens);
    check_dense_prefix(check, args);
    return check.status();
  }
  template <class Config>
  static Status check(const AccumulateArgs<Config>& args) {
    Checker check("accumulate");
    check.take(check_shapes(args));
    const std::int64_t count = sequence_count(args.sequences, args.key.batch);
    check_implicit_slots(check, args, count);
    check_last_position(check, "accumulate", args, args.key.tokens);
    return check.status();
  }
  template <class Config>
  static Status check(const DecodeArgs<Config>& args) {
    Checker check("decode_step");
    check.take(check_shapes(args));
    check_implicit_slots(check, args, args.query.batch);
    check_first_positions<Config>(check, args.first_positions);
    return check.status();
  }
  template <class Config>
  static Status check(const StagedStepArgs<Config>& args) {
    Checker check("staged_step");
    check.take(check_shapes(args));
    check_implicit_slots(check, args, args.query.batch);
    check_first_positions<Config>(check, args.first_positions);
    return check.status();
  }
  template <class Config>
  static Status check(const CommitArgs<Config>& args) {
    Checker check("commit");
    check.take(check_shapes(args));
    check_implicit_slots(check, args, args.staging.sequences);
    check_first_positions<Config>(check, args.first_positions);
    return check.status();
  }

 private:
  /// The last position, where it follows from the views alone.
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

  template <class Config>
  static void check_first_positions(Checker& check, const std::int32_t* first_positions) {
    if constexpr (Config::FeatureMap::needs_position) {
      check.not_null("first_positions (the feature map needs the position)", first_positions);
    }
  }

  template <class Config>
  static std::size_t workspace_bytes(const PrefillArgs<Config>& args, const Cuda& on) {
    return prefill_workspace_bytes(args, on);
  }
  template <class Config>
  static std::size_t workspace_bytes(const AccumulateArgs<Config>& args, const Cuda& on) {
    return accumulate_workspace_bytes(args, on);
  }
  template <class Args>
  static std::size_t workspace_bytes(const Args& args, const Cuda& /*on*/) {
    return step_bytes(cuda::step_of(args));
  }

  template <class Config>
  static cuda::Prefill<Config> prefill_of(const PrefillArgs<Config>& args, const Cuda& on) {
    return {args, sequence_count(args.sequences, args.query.batch), args.key.heads, on};
  }
  template <class Config>
  static cuda::Prefill<EncoderOnly<Config>> accumulate_of(const AccumulateArgs<Config>& args, const Cuda& on) {
    return {as_encoder(args), sequence_count(args.sequences, args.key.batch), args.key.heads, on};
  }

  template <class Work>
  static Status run_prefill(const char* operation, Work work, const Workspace& workspace, const Cuda& on) {
    Checker check(operation);
    check.workspace(workspace, work.workspace_bytes());
    if (!check.ok()) {
      return check.status();
    }
    static_cast<void>(work.choose());
    Arena arena(workspace);
    work.take(arena);
    return work.run(operation, on);
  }

  template <class Config>
  static std::size_t step_bytes(const cuda::StepCall<Config>& call) {
    Arena counting;
    counting.take<typename cuda::StepCall<Config>::T>(call.sum_elements());
    return counting.bytes_needed();
  }

  template <class Args>
  static Status run_step(const char* operation, const Args& args, const Workspace& workspace, const Cuda& on) {
    Checker checker(operation);
    checker.take(check(args));
    if (!checker.ok()) {
      return checker.status();
    }
    const auto call = cuda::step_of(args);
    checker.workspace(workspace, step_bytes(call));
    return checker.ok() ? cuda::launch_step(operation, call, workspace, on) : checker.status();
  }
};

}  // namespace jrt::detail
