// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/distributed/backend.hpp"
#include "jrt/detail/distributed/check.hpp"
#include "jrt/detail/distributed/halo_plan.hpp"
#include "jrt/distributed/communicator.hpp"
#include "jrt/distributed/context_parallel.hpp"
#include "jrt/status.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail {

/// Checks, takes the workspace and runs. `Work` is made of (args, on) and has `check(check, local, plan)`, `check_inner()`,
/// `take(arena)` and `run(communicator, meanwhile...)`.
template <class Work, class Args, class C, class Execution, class... Meanwhile>
Status run_context_call(const char* operation, const Args& args, C& communicator, const Workspace& workspace,
                        const Execution& on, const Meanwhile&... meanwhile) {
  Checker check(operation);
  check_plan(check, args.plan, communicator, on);
  if (check.ok()) {
    Work::check(check, args.local, args.plan->details());
  }
  if (!check.ok()) {
    return check.status();
  }
  Work work(args, on);
  check.workspace(workspace, context_bytes(work));
  if (!check.ok()) {
    return check.status();
  }
  Arena arena(workspace);
  work.take(arena);
  check.take(work.check_inner());
  return check.ok() ? work.run(communicator, meanwhile...) : check.status();
}

/// A mixer's context-parallel calls.
template <class Config, class Execution, class Prefill, class Backward>
struct ContextCalls {
  static std::size_t workspace_bytes(const ContextPrefillArgs<Config>& args, const Execution& on) {
    return args.plan == nullptr ? 0 : context_bytes(Prefill(args, on));
  }
  static std::size_t workspace_bytes(const ContextBackwardArgs<Config>& args, const Execution& on) {
    return args.plan == nullptr ? 0 : context_bytes(Backward(args, on));
  }
  template <class Meanwhile, class C>
  static Status run(const ContextPrefillArgs<Config>& args, const Meanwhile& meanwhile, C& communicator,
                    const Workspace& workspace, const Execution& on) {
    return run_context_call<Prefill>("prefill", args, communicator, workspace, on, meanwhile);
  }
  template <class C>
  static Status run(const ContextBackwardArgs<Config>& args, C& communicator, const Workspace& workspace,
                    const Execution& on) {
    return run_context_call<Backward>("backward", args, communicator, workspace, on);
  }
};

/// The plan of a mixer that needs the rows before a piece: `Mixer::halo_rows` of them, which the first
/// `Mixer::halo_reach` tokens look at.
template <class Mixer>
class HaloContextPlan {
 public:
  /// Makes `plan` that of `rank` for a layout. Allocates host memory; on failure (`invalid_argument`, `out_of_memory`)
  /// `plan` must not be used.
  template <class Execution>
  static Status make(const ContextLayout& layout, int rank, const Execution& /*on*/, Mixer& plan) {
    return plan.plan_.make(layout, rank, Mixer::halo_rows, Mixer::halo_reach);
  }

  /// Copies the plan's indices into `index_bytes()` bytes of memory that the device of `on` reads, aligned to 4 bytes,
  /// which must live as long as the plan is used. Not needed on the CPU.
  template <class Execution>
  Status place(void* memory, const Execution& on) {
    plan_.arrays.place(static_cast<const std::int32_t*>(memory));
    return ContextBackend<Execution>::upload(plan_.arrays.host_data(), memory, index_bytes(), on);
  }
  [[nodiscard]] std::size_t index_bytes() const { return plan_.arrays.bytes(); }
  [[nodiscard]] bool is_placed() const { return plan_.arrays.is_placed(); }

  [[nodiscard]] int rank() const { return plan_.rank; }
  [[nodiscard]] int ranks() const { return plan_.ranks; }
  /// Rows that this rank receives in a call, each of all key/value heads; a backward pass sends as many back.
  [[nodiscard]] std::int64_t received_rows() const { return plan_.incoming_rows; }

  /// What operations read.
  [[nodiscard]] const HaloPlan& details() const { return plan_; }

 private:
  HaloPlan plan_;
};

}  // namespace jrt::detail
