// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/backend.hpp"
#include "jrt/detail/check_window.hpp"
#include "jrt/detail/cpu/execution.hpp"
#include "jrt/detail/cpu/window.hpp"

namespace jrt::detail {

/// Window attention on the CPU: check the arguments, slice the workspace, hand heads to the executor.
template <WindowConfig Config, Executor E>
struct MixerBackend<Config, Cpu<E>> {
  static std::size_t prefill_workspace_bytes(const PrefillArgs<Config>& args, const Cpu<E>& on) { return bytes(args, on); }
  static Status prefill(const PrefillArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    return run("prefill", args, workspace, on);
  }

  static std::size_t decode_workspace_bytes(const DecodeArgs<Config>& args, const Cpu<E>& on) { return bytes(args, on); }
  static Status decode_step(const DecodeArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    return run("decode_step", args, workspace, on);
  }

  static std::size_t staged_workspace_bytes(const StagedStepArgs<Config>& args, const Cpu<E>& on) {
    return bytes(args, on);
  }
  static Status staged_step(const StagedStepArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    return run("staged_step", args, workspace, on);
  }

  static std::size_t commit_workspace_bytes(const CommitArgs<Config>& /*args*/, const Cpu<E>& /*on*/) { return 0; }
  static Status commit(const CommitArgs<Config>& args, const Workspace& /*workspace*/, const Cpu<E>& on) {
    const Status status = check(args);
    if (status.ok()) {
      const std::int64_t heads = args.staging.heads;
      on.executor().run(args.staging.sequences * heads,
                        [&](std::int64_t task, int /*worker*/) { cpu::commit_window(args, task / heads, task % heads); });
    }
    return status;
  }

  /// Runs `operation(workspace)` with as much memory as the arguments need; wrong arguments are reported before.
  template <class Args, class Operation>
  static Status with_owned_workspace(const Args& args, const Cpu<E>& on, const Operation& operation) {
    const Status status = check(args);
    return status.ok() ? with_heap_workspace(bytes(args, on), operation) : status;
  }

  template <class Args>
  static Status check(const Args& args) {
    const Status status = check_shapes(args);
    return status.ok() ? check_arrays(args) : status;
  }

 private:
  template <class Args>
  static std::size_t bytes(const Args& args, const Cpu<E>& on) {
    const WindowCall<Config> call = window_call(args);
    return counted_bytes(cpu::Window<Config>(call, workers_of(on)));
  }
  static std::size_t bytes(const CommitArgs<Config>& /*args*/, const Cpu<E>& /*on*/) { return 0; }

  template <class Args>
  static Status run(const char* operation, const Args& args, const Workspace& workspace, const Cpu<E>& on) {
    Checker checker(operation);
    checker.take(check(args));
    checker.workspace(workspace, checker.ok() ? bytes(args, on) : 0);
    if (checker.ok()) {
      const WindowCall<Config> call = window_call(args);
      cpu::Window<Config> window(call, workers_of(on));
      Arena arena(workspace);
      window.take(arena);
      window.run(on.executor());
    }
    return checker.status();
  }
};

}  // namespace jrt::detail
