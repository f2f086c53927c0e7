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

/// The implementation of all operations for one kind of execution. A backend's header specialises it.
template <class Execution>
struct Backend {
  static_assert(always_false<Execution>,
                "jrt: there is no backend for this execution argument. Include jrt/cpu.hpp and pass "
                "jrt::Cpu, or jrt/cuda.cuh (with a CUDA compiler) and jrt::Cuda.");
};

/// The implementation of prefill and decoding of one mixer. That of linear attention is part of the backend; window
/// attention and the convolution specialise this.
template <class Config, class Execution>
struct MixerBackend : Backend<Execution> {};

/// Runs `operation(workspace)` with a workspace of the heap, for backends that work in host memory.
template <class Operation>
Status with_heap_workspace(std::size_t bytes, const Operation& operation) {
  const std::unique_ptr<std::byte[]> memory(bytes == 0 ? nullptr : new (std::nothrow) std::byte[bytes]);
  if (bytes != 0 && memory == nullptr) {
    return Status::error(StatusCode::out_of_memory, "no memory for a workspace of %zu bytes.", bytes);
  }
  return operation(Workspace{memory.get(), bytes});
}

}  // namespace jrt::detail
