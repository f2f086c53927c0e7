// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/backend.hpp"
#include "jrt/detail/check/linear.hpp"
#include "jrt/detail/check/linear_backward.hpp"
#include "jrt/detail/cpu/linear/backward.hpp"
#include "jrt/detail/cpu/linear/prefill.hpp"
#include "jrt/detail/cpu/linear/step.hpp"
#include "jrt/detail/cpu/state/backend.hpp"
#include "jrt/detail/shared/linear/step_operator.hpp"
#include "jrt/execution/cpu.hpp"

namespace jrt::detail {

namespace cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// Runs `work`, a Prefill or a Backward, if the workspace is large enough.
template <class Work, Executor E>
Status run_work(const char* operation, Work work, const Workspace& workspace, const Cpu<E>& on) {
  Checker check(operation);
  check.workspace(workspace, counted_bytes(work));
  if (check.ok()) {
    Arena arena(workspace);
    work.take(arena);
    work.run(on.executor());
  }
  return check.status();
}

template <class Config>
std::size_t step_bytes(StepScratch<Config> scratch, int workers) {
  Arena counting;
  scratch.take(counting, workers);
  return counting.bytes_needed();
}

/// Runs `head(tokens, b, h)` for every sequence and key/value head, if the workspace is large enough.
template <class Config, Executor E, class Head>
Status run_heads(const char* operation, StepScratch<Config> scratch, std::int64_t sequences, std::int64_t heads,
                 const Workspace& workspace, const Cpu<E>& on, const Head& head) {
  const int workers = workers_of(on);
  Checker check(operation);
  check.workspace(workspace, step_bytes(scratch, workers));
  if (check.ok()) {
    Arena arena(workspace);
    scratch.take(arena, workers);
    on.executor().run(sequences * heads,
                      [&](std::int64_t task, int worker) { head(scratch.tokens_of(worker), task / heads, task % heads); });
  }
  return check.status();
}

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace cpu

/// Linear attention on the CPU: check the arguments, slice the workspace, hand heads to the executor.
template <AttentionConfig Config, Executor E>
struct MixerBackend<Config, Cpu<E>> {
  template <class Args>
  static Status check(const Args& args) {
    const Status status = check_shapes(args);
    return status.ok() ? check_arrays(args) : status;
  }

  static std::size_t workspace_bytes(const PrefillArgs<Config>& args, const Cpu<E>& on) {
    return counted_bytes(prefill_of(args, on));
  }
  static std::size_t workspace_bytes(const AccumulateArgs<Config>& args, const Cpu<E>& on) {
    const auto encoder = as_encoder(args);
    return counted_bytes(accumulate_of(args, encoder, on));
  }
  static std::size_t workspace_bytes(const BackwardArgs<Config>& args, const Cpu<E>& on) {
    return counted_bytes(backward_of(args, on));
  }
  template <StepArgsOf<Config> Args>
  static std::size_t workspace_bytes(const Args& args, const Cpu<E>& on) {
    return cpu::step_bytes(step_of(args), workers_of(on));
  }

  static Status run(const PrefillArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    const Status status = check(args);
    return status.ok() ? cpu::run_work("prefill", prefill_of(args, on), workspace, on) : status;
  }
  static Status run(const AccumulateArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    const Status status = check(args);
    const auto encoder = as_encoder(args);
    return status.ok() ? cpu::run_work("accumulate", accumulate_of(args, encoder, on), workspace, on) : status;
  }
  static Status run(const BackwardArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    const Status status = check(args);
    return status.ok() ? cpu::run_work("backward", backward_of(args, on), workspace, on) : status;
  }
  static Status run(const DecodeArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    return run_step(args, workspace, on,
                    [&](const auto& tokens, std::int64_t b, std::int64_t h) { cpu::decode_head(args, tokens, b, h); });
  }
  static Status run(const StagedStepArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    return run_step(args, workspace, on,
                    [&](const auto& tokens, std::int64_t b, std::int64_t h) { cpu::staged_head(args, tokens, b, h); });
  }
  static Status run(const CommitArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    return run_step(args, workspace, on,
                    [&](const auto& tokens, std::int64_t b, std::int64_t h) { cpu::commit_head(args, tokens, b, h); });
  }

 private:
  template <class Args, class Head>
  static Status run_step(const Args& args, const Workspace& workspace, const Cpu<E>& on, const Head& head) {
    const Status status = check(args);
    return status.ok() ? cpu::run_heads(operation_name(args), step_of(args), sequences_of(args), heads_of(args), workspace,
                                        on, head)
                       : status;
  }

  /// Key/value heads of a step or a commit.
  template <class Args>
  static std::int64_t heads_of(const Args& args) {
    if constexpr (requires { args.key; }) {
      return args.key.heads;
    } else {
      return args.staging.heads;
    }
  }

  static cpu::Prefill<Config> prefill_of(const PrefillArgs<Config>& args, const Cpu<E>& on) {
    return {args, sequence_count(args.sequences, args.query.batch), args.key.heads, workers_of(on)};
  }

  static cpu::Prefill<EncoderOnly<Config>> accumulate_of(const AccumulateArgs<Config>& args,
                                                         const PrefillArgs<EncoderOnly<Config>>& encoder,
                                                         const Cpu<E>& on) {
    return {encoder, sequence_count(args.sequences, args.key.batch), args.key.heads, workers_of(on)};
  }

  static cpu::Backward<Config> backward_of(const BackwardArgs<Config>& args, const Cpu<E>& on) {
    return {args, sequence_count(args.sequences, args.query.batch), workers_of(on)};
  }

  static cpu::StepScratch<StepOnly<Config>> step_of(const DecodeArgs<Config>& args) {
    return {args.query.tokens, 0, query_group(args)};
  }
  static cpu::StepScratch<StepOnly<Config>> step_of(const StagedStepArgs<Config>& args) {
    return {args.already_staged + args.query.tokens, args.already_staged, query_group(args)};
  }
  static cpu::StepScratch<StepOnly<Config>> step_of(const CommitArgs<Config>& args) {
    return {args.staging.tokens, args.staging.tokens, 0};
  }
};

}  // namespace jrt::detail
