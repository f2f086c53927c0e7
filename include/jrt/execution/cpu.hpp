// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/abi.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/executor.hpp"

namespace jrt {

inline namespace JRT_DETAIL_CPU_ABI {

/// Execution argument: run on the CPU, on the threads of `executor`, which must outlive the call. `Cpu{}` runs in the
/// calling thread, `Cpu{pool}` on any `Executor`.
template <Executor E = SerialExecutor>
class Cpu {
 public:
  explicit Cpu(E& executor) : executor_(&executor) {}

  [[nodiscard]] E& executor() const { return *executor_; }

 private:
  E* executor_;
};

template <>
class Cpu<SerialExecutor> {
 public:
  Cpu() = default;
  explicit Cpu(SerialExecutor& /*executor*/) {}

  [[nodiscard]] static SerialExecutor executor() { return {}; }
};

Cpu()->Cpu<SerialExecutor>;

}  // namespace JRT_DETAIL_CPU_ABI

namespace detail {

/// Workers of the executor. One that reports none still runs tasks in the caller's thread.
template <Executor E>
int workers_of(const Cpu<E>& on) {
  return larger<int>(1, on.executor().concurrency());
}

}  // namespace detail

}  // namespace jrt
