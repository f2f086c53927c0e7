// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>

#include "jrt/detail/language.hpp"

namespace jrt {

namespace detail {

// A task of any type, for the Executor concept.
struct AnyTask {
  void operator()(std::int64_t /*task*/, int /*worker*/) const {}
};

}  // namespace detail

/// The interface through which the CPU backend uses threads: an engine adapts its own pool by giving it these two
/// functions.
///
/// `concurrency()` is the number of workers, at least 1. `run(tasks, function)` calls `function(task, worker)` once for
/// every task in [0, tasks) and returns when all have returned; worker is in [0, concurrency()), and no two calls with the
/// same worker run at the same time. The function does not throw. Results do not depend on which worker gets which task.
template <class E>
concept Executor = requires(E& executor, std::int64_t tasks, const detail::AnyTask& function) {
  { executor.concurrency() } -> std::convertible_to<int>;
  executor.run(tasks, function);
};

/// Runs all tasks in the calling thread.
struct SerialExecutor {
  static constexpr int concurrency() { return 1; }

  template <class Function>
  void run(std::int64_t tasks, const Function& function) const {
    for (std::int64_t task = 0; task < tasks; ++task) {
      function(task, 0);
    }
  }
};

}  // namespace jrt
