// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <new>

#include "jrt/status.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail {

template <class>
inline constexpr bool always_false = false;

template <class Execution>
struct NoBackend {
  static_assert(always_false<Execution>,
                "jrt: there is no backend for this execution argument. Include jrt/cpu.hpp and pass "
                "jrt::Cpu, or jrt/cuda.cuh (with a CUDA compiler) and jrt::Cuda.");
};

/// What one kind of execution provides independently of mixers: operations on whole states;
/// `with_workspace(bytes, on, operation)`, which runs `operation(workspace)` with memory for the call; `host_reads_arrays`,
/// whether slots, lengths and the like are in host memory; and `kernels`, if all calls have the same. A backend's header
/// specialises it.
template <class Execution>
struct Backend : NoBackend<Execution> {};

/// The operations of one mixer. An operation is the type of its arguments; a specialisation has, for each:
///
///     check(args)                        the first error that the host can find in them
///     workspace_bytes(args, on)
///     run(args, workspace, on)           checks, then runs
///     kernels(args, on)                  which kernels `run` would select, unless the backend has but one kind
///
/// and the verbs in the public headers forward to these. A new operation is one overload of each in each mixer.
template <class Config, class Execution>
struct MixerBackend : NoBackend<Execution> {};

/// `run` with a workspace allocated for the call; invalid arguments are reported before the allocation.
template <class Config, class Args, class Execution>
Status run_with_own_workspace(const Args& args, const Execution& on) {
  using Mixer = MixerBackend<Config, Execution>;
  const Status status = Mixer::check(args);
  if (!status.ok()) {
    return status;
  }
  const std::size_t bytes = Mixer::workspace_bytes(args, on);
  const auto run = [&](const Workspace& workspace) { return Mixer::run(args, workspace, on); };
  return bytes == 0 ? run(Workspace{}) : Backend<Execution>::with_workspace(bytes, on, run);
}

/// Runs `operation(workspace)` with a workspace from the heap, for backends that run in host memory.
template <class Operation>
Status with_heap_workspace(std::size_t bytes, const Operation& operation) {
  const std::unique_ptr<std::byte[]> memory(bytes == 0 ? nullptr : new (std::nothrow) std::byte[bytes]);
  if (bytes != 0 && memory == nullptr) {
    return Status::error(StatusCode::out_of_memory, "no memory for a workspace of %zu bytes.", bytes);
  }
  return operation(Workspace{memory.get(), bytes});
}

}  // namespace jrt::detail
