// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/executor.hpp"

namespace jrt {

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

}  // namespace jrt
