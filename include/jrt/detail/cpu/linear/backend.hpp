// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/backend.hpp"
#include "jrt/detail/check/linear.hpp"
#include "jrt/detail/cpu/linear/decode.hpp"
#include "jrt/detail/cpu/linear/prefill.hpp"
#include "jrt/detail/cpu/state/backend.hpp"
#include "jrt/execution/cpu.hpp"

namespace jrt::detail {

/// Every operation on the CPU: check the arguments, slice the workspace, hand heads to the executor. Operations on whole
/// states are in the base.
template <Executor E>
struct Backend<Cpu<E>> : cpu::StateBackend<E> {
  static constexpr bool host_reads_arrays = true;  ///< slots, lengths and the like

  // -- prefill and accumulate --------------------------------------------------------------------------------------------

  template <class Config>
  static std::size_t prefill_workspace_bytes(const PrefillArgs<Config>& args, const Cpu<E>& on) {
    return counted_bytes(prefill_of(args, on));
  }

  template <class Config>
  static Status prefill(const PrefillArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    const Status status = check(args);
    return status.ok() ? run_prefill("prefill", prefill_of(args, on), workspace, on) : status;
  }

  template <class Config>
  static std::size_t accumulate_workspace_bytes(const AccumulateArgs<Config>& args, const Cpu<E>& on) {
    const auto encoder = as_encoder(args);
    return counted_bytes(accumulate_of(args, encoder, on));
  }

  template <class Config>
  static Status accumulate(const AccumulateArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    const Status status = check(args);
    const auto encoder = as_encoder(args);
    return status.ok() ? run_prefill("accumulate", accumulate_of(args, encoder, on), workspace, on) : status;
  }

  // -- decoding ----------------------------------------------------------------------------------------------------------

  template <class Config>
  static std::size_t decode_workspace_bytes(const DecodeArgs<Config>& args, const Cpu<E>& on) {
    return step_bytes(step_of(args), workers_of(on));
  }

  template <class Config>
  static Status decode_step(const DecodeArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    const Status status = check(args);
    return !status.ok() ? status
                        : run_heads("decode_step", step_of(args), args.query.batch, args.key.heads, workspace, on,
                                    [&](const auto& tokens, std::int64_t b, std::int64_t h) {
                                      cpu::decode_head(args, tokens, b, h);
                                    });
  }

  template <class Config>
  static std::size_t staged_workspace_bytes(const StagedStepArgs<Config>& args, const Cpu<E>& on) {
    return step_bytes(step_of(args), workers_of(on));
  }

  template <class Config>
  static Status staged_step(const StagedStepArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    const Status status = check(args);
    return !status.ok() ? status
                        : run_heads("staged_step", step_of(args), args.query.batch, args.key.heads, workspace, on,
                                    [&](const auto& tokens, std::int64_t b, std::int64_t h) {
                                      cpu::staged_head(args, tokens, b, h);
                                    });
  }

  template <class Config>
  static std::size_t commit_workspace_bytes(const CommitArgs<Config>& args, const Cpu<E>& on) {
    return step_bytes(step_of(args), workers_of(on));
  }

  template <class Config>
  static Status commit(const CommitArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    const Status status = check(args);
    return !status.ok() ? status
                        : run_heads("commit", step_of(args), args.staging.sequences, args.staging.heads, workspace, on,
                                    [&](const auto& tokens, std::int64_t b, std::int64_t h) {
                                      cpu::commit_head(args, tokens, b, h);
                                    });
  }

  /// Runs `operation(workspace)` with as much memory as the arguments need; wrong arguments are reported before.
  template <class Args, class Operation>
  static Status with_owned_workspace(const Args& args, const Cpu<E>& on, const Operation& operation) {
    const Status status = check(args);
    return status.ok() ? with_workspace(workspace_bytes(args, on), on, operation) : status;
  }

  /// Runs `operation(workspace)` with memory of the heap.
  template <class Operation>
  static Status with_workspace(std::size_t bytes, const Cpu<E>& /*on*/, const Operation& operation) {
    return with_heap_workspace(bytes, operation);
  }

  template <class Args>
  static Status check(const Args& args) {
    const Status status = check_shapes(args);
    return status.ok() ? check_arrays(args) : status;
  }

 protected:
  template <class Work>
  static Status run_prefill(const char* operation, Work work, const Workspace& workspace, const Cpu<E>& on) {
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
  static std::size_t step_bytes(cpu::StepScratch<Config> scratch, int workers) {
    Arena counting;
    scratch.take(counting, workers);
    return counting.bytes_needed();
  }

  /// Runs `head(tokens, b, h)` for every sequence and key/value head, if the workspace allows it.
  template <class Config, class Head>
  static Status run_heads(const char* operation, cpu::StepScratch<Config> scratch, std::int64_t sequences,
                          std::int64_t heads, const Workspace& workspace, const Cpu<E>& on, const Head& head) {
    const int workers = workers_of(on);
    Checker check(operation);
    check.workspace(workspace, step_bytes(scratch, workers));
    if (check.ok()) {
      Arena arena(workspace);
      scratch.take(arena, workers);
      on.executor().run(sequences * heads, [&](std::int64_t task, int worker) {
        head(scratch.tokens_of(worker), task / heads, task % heads);
      });
    }
    return check.status();
  }

 private:
  template <class Config>
  static std::size_t workspace_bytes(const PrefillArgs<Config>& args, const Cpu<E>& on) {
    return prefill_workspace_bytes(args, on);
  }
  template <class Config>
  static std::size_t workspace_bytes(const AccumulateArgs<Config>& args, const Cpu<E>& on) {
    return accumulate_workspace_bytes(args, on);
  }
  template <class Args>
  static std::size_t workspace_bytes(const Args& args, const Cpu<E>& on) {
    return step_bytes(step_of(args), workers_of(on));
  }

  template <class Config>
  static cpu::Prefill<Config> prefill_of(const PrefillArgs<Config>& args, const Cpu<E>& on) {
    return {args, sequence_count(args.sequences, args.query.batch), args.key.heads, workers_of(on)};
  }

  template <class Config>
  static cpu::Prefill<EncoderOnly<Config>> accumulate_of(const AccumulateArgs<Config>& args,
                                                         const PrefillArgs<EncoderOnly<Config>>& encoder,
                                                         const Cpu<E>& on) {
    return {encoder, sequence_count(args.sequences, args.key.batch), args.key.heads, workers_of(on)};
  }

  template <class Config>
  static cpu::StepScratch<Config> step_of(const DecodeArgs<Config>& args) {
    return {args.query.tokens, 0, query_group(args)};
  }
  template <class Config>
  static cpu::StepScratch<Config> step_of(const StagedStepArgs<Config>& args) {
    return {args.already_staged + args.query.tokens, args.already_staged, query_group(args)};
  }
  template <class Config>
  static cpu::StepScratch<Config> step_of(const CommitArgs<Config>& args) {
    return {args.staging.tokens, args.staging.tokens, 0};
  }
};

}  // namespace jrt::detail
