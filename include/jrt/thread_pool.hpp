// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "jrt/detail/language.hpp"

namespace jrt {

/// The bundled executor: a fixed set of threads that take tasks off a shared counter. Nothing is allocated after
/// construction. `run` may not be called from two threads at once, nor from within a task.
///
/// Waiting threads look again for some tens of microseconds before they sleep, since waking one takes as long: the rounds
/// of a decode step follow one another faster. They sleep at once where there are more of them than processors.
class ThreadPool {
 public:
  /// Starts `threads` − 1 threads; the caller of `run` is the last worker. If the system cannot create all of them, the
  /// pool is smaller; `concurrency()` returns its size. Never throws, so that programs compiled without exceptions can use
  /// it.
  explicit ThreadPool(int threads) noexcept
      : threads_(threads > 1 ? new (std::nothrow) Thread[static_cast<std::size_t>(threads) - 1] : nullptr),
        looks_(threads <= processors() ? looks_before_sleep : 0) {
    // POSIX threads, because std::thread reports failure only by an exception.
    while (threads_ != nullptr && started_ < threads - 1) {
      Thread& thread = threads_[static_cast<std::size_t>(started_)];
      thread.pool = this;
      thread.worker = started_ + 1;
      if (pthread_create(&thread.handle, nullptr, &ThreadPool::enter, &thread) != 0) {
        break;  // the threads that did start are enough
      }
      ++started_;
    }
  }

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  ~ThreadPool() {
    stopping_ = true;
    publish_round();
    for (int i = 0; i < started_; ++i) {
      pthread_join(threads_[static_cast<std::size_t>(i)].handle, nullptr);
    }
  }

  [[nodiscard]] int concurrency() const { return started_ + 1; }

  /// Calls `function(task, worker)` for every task in [0, tasks) and returns when all are done.
  template <class Function>
  void run(std::int64_t tasks, const Function& function) {
    if (tasks <= 1) {
      if (tasks == 1) {
        function(std::int64_t{0}, 0);  // no other worker is needed
      }
      return;
    }
    tasks_ = tasks;
    function_ = &function;
    call_ = [](const void* f, std::int64_t task, int worker) { (*static_cast<const Function*>(f))(task, worker); };
    next_task_.store(0, std::memory_order_relaxed);
    busy_.store(started_, std::memory_order_relaxed);
    publish_round();
    work(0);
    for (int looks = 0; looks < looks_ && busy_.load(std::memory_order_acquire) != 0; ++looks) {
      pause();
    }
    for (int busy = busy_.load(std::memory_order_acquire); busy != 0; busy = busy_.load(std::memory_order_acquire)) {
      busy_.wait(busy, std::memory_order_acquire);
    }
  }

 private:
  struct Thread {
    ThreadPool* pool;
    int worker;
    pthread_t handle;
  };

  static constexpr int looks_before_sleep = 64;   // of a microsecond or less
  static constexpr std::size_t line_bytes = 128;  // cache lines come in pairs

  /// Those that this process may use.
  static int processors() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
      return CPU_COUNT(&set);
    }
#endif
    return static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  }

  /// Waits a moment, then lets another thread run that waits for this processor.
  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    for (int i = 0; i < 16; ++i) {
      __builtin_ia32_pause();
    }
#endif
    sched_yield();
  }

  static void* enter(void* thread) {
    const auto* const self = static_cast<const Thread*>(thread);
    self->pool->serve(self->worker);
    return nullptr;
  }

  void publish_round() {
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

  void serve(int worker) {
    for (std::uint32_t seen = 0;;) {
      for (int looks = 0; looks < looks_ && round_.load(std::memory_order_acquire) == seen; ++looks) {
        pause();
      }
      round_.wait(seen, std::memory_order_acquire);
      // A round cannot be missed: the next one starts only after every thread has reported the last.
      ++seen;
      if (stopping_) {
        return;
      }
      work(worker);
      if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        busy_.notify_one();
      }
    }
  }

  std::unique_ptr<Thread[]> threads_;
  int started_ = 0;
  int looks_;
  bool stopping_ = false;
  // What all read at the start of a round, what all write within it, and what each writes at its end: apart, so that
  // nobody's waiting slows down another's work.
  alignas(line_bytes) std::atomic<std::uint32_t> round_{0};
  std::int64_t tasks_ = 0;
  const void* function_ = nullptr;
  void (*call_)(const void*, std::int64_t, int) = nullptr;
  alignas(line_bytes) std::atomic<std::int64_t> next_task_{0};
  alignas(line_bytes) std::atomic<int> busy_{0};
};

}  // namespace jrt
