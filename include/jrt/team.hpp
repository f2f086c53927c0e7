// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "jrt/executor.hpp"
#include "jrt/status.hpp"

namespace jrt {

/// The executor of threads that are already inside an operation: ggml's worker threads, an OpenMP parallel region. All of
/// them call `enter`; thread 0 makes the library's call on this executor, and the others run its tasks until it returns.
///
///     jrt::Team team;                                             // outlives all calls of enter; may be used again
///     #pragma omp parallel
///     team.enter(omp_get_thread_num(), omp_get_num_threads(), [&] { return jrt::prefill(args, workspace, jrt::Cpu{team});
///     });
///
/// Nothing is allocated, and no thread is created. Threads wait for each other by looking, for some 50 µs, and then
/// in the kernel. Outside of `enter`, calls on a team run in the calling thread.
class Team {
 public:
  /// `threads` is what `concurrency` returns before the first `enter`: with it an engine asks for the workspace of a call
  /// that so many threads will make.
  explicit Team(int threads = 1) noexcept : threads_(threads < 1 ? 1 : threads) {}

  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  /// Called by threads 0 … `count` − 1, each with its own number and all with the same count, which may differ from one
  /// time to the next. `call()`, of thread 0 alone, returns the Status that `enter` returns in every thread; what the call
  /// has written is visible to all of them by then. A failed call releases the others as a successful one does. `call` is
  /// not used in the other threads, and should not throw.
  ///
  /// Error `invalid_argument`, at once and without waiting for others, if `thread` is not from 0 to `count` − 1.
  template <class Call>
  Status enter(int thread, int count, const Call& call) {
    if (thread < 0 || thread >= count) {
      return Status::error(StatusCode::invalid_argument,
                           "team: argument 'thread' is %d, but must be from 0 to %d (the team's last thread).", thread,
                           count - 1);
    }
    const std::uint32_t round = round_.load(std::memory_order_relaxed);  // no round begins before all have arrived
    arrive(count);
    if (thread != 0) {
      serve(thread, round);
      return status_;
    }
    // All have arrived, so nobody reads these any more on the way out of the last call.
    threads_ = count;
    helpers_ = count - 1;
    ended_ = false;
    status_ = Status::error(StatusCode::invalid_argument, "team: the call of thread 0 ended by an exception.");
    const Release release{*this};
    status_ = call();
    return status_;
  }

  [[nodiscard]] int concurrency() const { return threads_; }

  /// Calls `function(task, worker)` for every task in [0, tasks) and returns when all are done.
  template <class Function>
  void run(std::int64_t tasks, const Function& function) {
    if (tasks <= 1 || helpers_ == 0) {
      SerialExecutor().run(tasks, function);
      return;
    }
    tasks_ = tasks;
    function_ = &function;
    call_ = [](const void* f, std::int64_t task, int worker) { (*static_cast<const Function*>(f))(task, worker); };
    next_task_.store(0, std::memory_order_relaxed);
    busy_.store(helpers_, std::memory_order_relaxed);
    begin_round();
    work(0);
    for (int busy = busy_.load(std::memory_order_acquire); busy != 0; busy = busy_.load(std::memory_order_acquire)) {
      await_change(busy_, busy);
    }
  }

 private:
  static constexpr std::size_t line = 64;

  /// Ends the call, whatever way thread 0 leaves it.
  struct Release {
    Team& team;
    ~Release() {
      team.ended_ = true;
      if (team.helpers_ != 0) {
        team.helpers_ = 0;
        team.begin_round();
      }
    }
    explicit Release(Team& of) : team(of) {}
    Release(const Release&) = delete;
    Release& operator=(const Release&) = delete;
  };

  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    asm volatile("pause");
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  /// Returns when `value` is no longer `old`.
  template <class T>
  static void await_change(const std::atomic<T>& value, T old) {
    constexpr int looks = 2000;
    for (int look = 0; look < looks; ++look) {
      if (value.load(std::memory_order_acquire) != old) {
        return;
      }
      pause();
    }
    value.wait(old, std::memory_order_acquire);
  }

  /// Returns when all have arrived. The last one resets the barrier before it opens.
  void arrive(int count) {
    const std::uint32_t opened = opened_.load(std::memory_order_relaxed);  // does not change before this thread arrives
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      opened_.fetch_add(1, std::memory_order_release);
      opened_.notify_all();
    } else {
      await_change(opened_, opened);
    }
  }

  void begin_round() {
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
  }

  void work(int worker) {
    for (;;) {
      const std::int64_t task = next_task_.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks_) {
        return;
      }
      call_(function_, task, worker);
    }
  }

  void serve(int worker, std::uint32_t seen) {
    for (;;) {
      // A round cannot be missed: the next one begins only after every helper has reported the last.
      await_change(round_, seen++);
      if (ended_) {
        return;
      }
      work(worker);
      if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        busy_.notify_one();
      }
    }
  }

  // Written by thread 0 alone, between rounds.
  int threads_;
  int helpers_ = 0;
  bool ended_ = false;
  std::int64_t tasks_ = 0;
  const void* function_ = nullptr;
  void (*call_)(const void*, std::int64_t, int) = nullptr;
  Status status_;
  // What threads wait for and what they count with are apart.
  alignas(line) std::atomic<std::uint32_t> round_{0};
  alignas(line) std::atomic<std::int64_t> next_task_{0};
  alignas(line) std::atomic<int> busy_{0};
  alignas(line) std::atomic<int> arrived_{0};
  std::atomic<std::uint32_t> opened_{0};
};

}  // namespace jrt
