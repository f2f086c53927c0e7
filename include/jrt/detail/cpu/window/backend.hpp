// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/backend.hpp"
#include "jrt/detail/check/window.hpp"
#include "jrt/detail/cpu/state/backend.hpp"
#include "jrt/detail/cpu/window/attention.hpp"
#include "jrt/detail/cpu/window/backward.hpp"
#include "jrt/execution/cpu.hpp"

namespace jrt::detail {

/// Window attention on the CPU: check the arguments, slice the workspace, hand heads to the executor.
template <WindowConfig Config, Executor E>
struct MixerBackend<Config, Cpu<E>> {
  template <class Args>
  static Status check(const Args& args) {
    const Status status = check_shapes(args);
    return status.ok() ? check_arrays(args) : status;
  }

  template <class Args>
  static std::size_t workspace_bytes(const Args& args, const Cpu<E>& on) {
    return call_bytes(window_call(args), on);
  }
  static std::size_t workspace_bytes(const CommitArgs<Config>& /*args*/, const Cpu<E>& /*on*/) { return 0; }

  /// A prefill, its backward pass or a step.
  template <class Args>
  static Status run(const Args& args, const Workspace& workspace, const Cpu<E>& on) {
    Checker checker(operation_name(args));
    checker.take(check(args));
    checker.workspace(workspace, checker.ok() ? workspace_bytes(args, on) : 0);
    if (checker.ok()) {
      run_call(window_call(args), workspace, on);
    }
    return checker.status();
  }
  static Status run(const CommitArgs<Config>& args, const Workspace& /*workspace*/, const Cpu<E>& on) {
    const Status status = check(args);
    if (status.ok()) {
      run_commit(args, on);
    }
    return status;
  }

  static std::size_t call_bytes(const WindowBackwardCall<Config>& call, const Cpu<E>& on) {
    return counted_bytes(cpu::WindowBackward<Config>(call, workers_of(on)));
  }
  static void run_call(const WindowBackwardCall<Config>& call, const Workspace& workspace, const Cpu<E>& on) {
    cpu::WindowBackward<Config> backward(call, workers_of(on));
    Arena arena(workspace);
    backward.take(arena);
    backward.run(on.executor());
  }

  // -- called by mixers that contain a window; arguments are checked ----------------------------------------------------

  static std::size_t call_bytes(const WindowCall<Config>& call, const Cpu<E>& on) {
    return counted_bytes(cpu::Window<Config>(call, workers_of(on)));
  }
  static void run_call(const WindowCall<Config>& call, const Workspace& workspace, const Cpu<E>& on) {
    cpu::Window<Config> window(call, workers_of(on));
    Arena arena(workspace);
    window.take(arena);
    window.run(on.executor());
  }
  static void run_commit(const CommitArgs<Config>& args, const Cpu<E>& on) {
    const std::int64_t heads = args.staging.heads;
    on.executor().run(args.staging.sequences * heads,
                      [&](std::int64_t task, int /*worker*/) { cpu::commit_window(args, task / heads, task % heads); });
  }
};

}  // namespace jrt::detail
