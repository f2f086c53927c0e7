// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/check/hybrid.hpp"
#include "jrt/detail/cpu/hybrid/step.hpp"
#include "jrt/detail/cpu/linear/backend.hpp"
#include "jrt/detail/cpu/window/backend.hpp"
#include "jrt/detail/shared/hybrid/gradients.hpp"
#include "jrt/detail/shared/hybrid/parts.hpp"

namespace jrt::detail {

/// Linear and window attention in one mixer, on the CPU: the linear part of a call over all heads, then the window part, in
/// one workspace.
template <HybridConfig Config, Executor E>
struct MixerBackend<Config, Cpu<E>> {
  template <class Args>
  static Status check(const Args& args) {
    const Status status = check_shapes(args);
    return status.ok() ? check_arrays(args) : status;
  }

  template <class Args>
  static std::size_t workspace_bytes(const Args& args, const Cpu<E>& on) {
    Arena counting;
    static_cast<void>(take(counting, args, on));
    return counting.bytes_needed();
  }
  static std::size_t workspace_bytes(const CommitArgs<Config>& args, const Cpu<E>& on) {
    return linear_bytes(Parts::linear(args), on);
  }

  static std::size_t workspace_bytes(const BackwardArgs<Config>& args, const Cpu<E>& on) {
    const auto linear = Gradients::linear(args);
    return larger(counted_bytes(linear_backward_of(linear, on)), WindowGradients::call_bytes(Gradients::window(args), on));
  }

  /// A prefill or a step.
  template <class Args>
  static Status run(const Args& args, const Workspace& workspace, const Cpu<E>& on) {
    Checker checker(operation_name(args));
    checker.take(check(args));
    checker.workspace(workspace, checker.ok() ? workspace_bytes(args, on) : 0);
    if (!checker.ok()) {
      return checker.status();
    }
    Arena arena(workspace);
    const Memory memory = take(arena, args, on);
    const auto denominators = Parts::denominators(args, memory.denominators);
    checker.take(run_linear(Parts::linear(args, denominators), memory.rest, on));
    if (checker.ok()) {
      Window::run_call(Parts::window(args, denominators), memory.rest, on);
    }
    return checker.status();
  }
  static Status run(const CommitArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    Checker checker(operation_name(args));
    checker.take(check(args));
    if (checker.ok()) {
      checker.take(run_linear(Parts::linear(args), workspace, on));
    }
    if (checker.ok()) {
      Window::run_commit(Parts::window(args), on);
    }
    return checker.status();
  }

  static Status run(const BackwardArgs<Config>& args, const Workspace& workspace, const Cpu<E>& on) {
    Checker checker(operation_name(args));
    checker.take(check(args));
    checker.workspace(workspace, checker.ok() ? workspace_bytes(args, on) : 0);
    if (checker.ok()) {
      const auto linear = Gradients::linear(args);
      checker.take(cpu::run_work("backward", linear_backward_of(linear, on), workspace, on));
    }
    if (checker.ok()) {
      WindowGradients::run_call(Gradients::window(args), workspace, on);
    }
    return checker.status();
  }

 private:
  using Gradients = HybridGradientParts<Config>;
  using WindowGradients = MixerBackend<typename Gradients::Window, Cpu<E>>;
  static auto linear_backward_of(const BackwardArgs<typename Gradients::Linear>& args, const Cpu<E>& on) {
    return cpu::Backward<typename Gradients::Linear>(args, sequence_count(args.sequences, args.query.batch),
                                                     workers_of(on));
  }

  using Parts = HybridParts<Config>;
  using LinearPart = typename Parts::LinearPart;
  using Window = MixerBackend<typename Parts::Ring, Cpu<E>>;

  /// Denominators, then the workspace of either part.
  struct Memory {
    typename Parts::Denominator* denominators = nullptr;
    Workspace rest{};
  };
  template <class Args>
  static Memory take(Arena& arena, const Args& args, const Cpu<E>& on) {
    Memory memory;
    memory.denominators = arena.take<typename Parts::Denominator>(Parts::denominator_count(args));
    memory.rest.bytes = larger(linear_bytes(Parts::linear(args, {}), on), Window::call_bytes(Parts::window(args, {}), on));
    memory.rest.data = arena.take<std::byte>(static_cast<std::int64_t>(memory.rest.bytes));
    return memory;
  }
  static cpu::Prefill<LinearPart> prefill_of(const LinearPartArgs<LinearPart>& args, const Cpu<E>& on) {
    return {args, sequence_count(args.sequences, args.query.batch), args.key.heads, workers_of(on)};
  }
  static std::size_t linear_bytes(const LinearPartArgs<LinearPart>& args, const Cpu<E>& on) {
    return counted_bytes(prefill_of(args, on));
  }
  static Status run_linear(const LinearPartArgs<LinearPart>& args, const Workspace& workspace, const Cpu<E>& on) {
    return cpu::run_work("prefill", prefill_of(args, on), workspace, on);
  }

  static cpu::StepScratch<LinearPart> scratch_of(const LinearPartStep<LinearPart>& step) {
    const bool commits = step.accepted_tokens != nullptr;
    return {step.keys, commits ? step.keys : step.already_staged, step.group};
  }
  static std::size_t linear_bytes(const LinearPartStep<LinearPart>& step, const Cpu<E>& on) {
    return cpu::step_bytes(scratch_of(step), workers_of(on));
  }
  static Status run_linear(const LinearPartStep<LinearPart>& step, const Workspace& workspace, const Cpu<E>& on) {
    const char* const operation = step.accepted_tokens != nullptr        ? "commit"
                                  : step.evicted.staging.data != nullptr ? "staged_step"
                                                                         : "decode_step";
    return cpu::run_heads(
        operation, scratch_of(step), step.sequences, step.heads, workspace, on,
        [&](const auto& tokens, std::int64_t b, std::int64_t h) { cpu::linear_part_step_head(step, tokens, b, h); });
  }
};

}  // namespace jrt::detail
