// SPDX-License-Identifier: Apache-2.0
#include <jrt/executor.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <future>
#include <jrt/thread_pool.hpp>
#include <vector>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/linear_problem.hpp"

namespace jrt::test {
namespace {

static_assert(Executor<SerialExecutor> && Executor<ThreadPool>);

TEST_CASE("the pool runs every task once, in valid workers, none of which works twice at a time") {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    REQUIRE(pool.concurrency() == threads);
    for (const std::int64_t tasks : {0, 1, 3, 1000}) {
      for (int round = 0; round < 50; ++round) {
        std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
        std::vector<std::atomic<int>> busy(static_cast<std::size_t>(threads));
        std::atomic<bool> sound = true;
        pool.run(tasks, [&](std::int64_t task, int worker) {
          sound = sound && worker >= 0 && worker < threads && busy[static_cast<std::size_t>(worker)]++ == 0;
          ++runs[static_cast<std::size_t>(task)];
          --busy[static_cast<std::size_t>(worker)];
        });
        CHECK(sound);
        for (const auto& count : runs) {
          REQUIRE(count == 1);
        }
      }
    }
  }
}

TEST_CASE("a pool of fewer than one thread is one of the caller's") {
  CHECK(ThreadPool(0).concurrency() == 1);
}

/// An engine's own way of running things: here, futures.
struct EngineThreads {
  static int concurrency() { return 2; }

  template <class Function>
  void run(std::int64_t tasks, const Function& function) {
    const auto half = [&](std::int64_t first, int worker) {
      for (std::int64_t task = first; task < tasks; task += 2) {
        function(task, worker);
      }
    };
    auto other = std::async(std::launch::async, half, 1, 1);
    half(0, 0);
    other.get();
    ++calls;
  }
  int calls = 0;
};

struct Engine {
  template <class T>
  using Array = HostArray<T>;
  static Cpu<EngineThreads> execution() {
    static EngineThreads threads;
    return Cpu{threads};
  }
};

TEST_CASE("an engine's own threads run the operations, with the same result") {
  using Config = Prefix<float>;
  const Problem<Config> problem({.batch = 2, .tokens = 60, .prefix = 30});
  CHECK(run_prefill<Engine>(problem).output == run_prefill<Simple>(problem).output);
  CHECK(Engine::execution().executor().calls > 0);
}

}  // namespace
}  // namespace jrt::test
