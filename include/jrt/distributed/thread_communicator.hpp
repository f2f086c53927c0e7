// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <utility>

#include "jrt/distributed/communicator.hpp"
#include "jrt/status.hpp"

namespace jrt {

/// What the threads of a group share; owned by the caller, and longer-lived than their `ThreadCommunicator`s. Calls
/// allocate nothing. A rank that waits for another longer than the time limit ends the group: its call and all others, also
/// later ones, return `device_error`, with the rank that was missing. So do they after `abort`. `reset` begins anew.
class ThreadGroup {
 public:
  /// A group of `ranks` threads; leaves `group` unchanged on failure.
  static Status make(int ranks, std::chrono::milliseconds time_limit, std::unique_ptr<ThreadGroup>& group) {
    if (ranks < 1) {
      return Status::error(StatusCode::invalid_argument, "ThreadGroup: ranks = %d, but must be at least 1.", ranks);
    }
    std::unique_ptr<ThreadGroup> made(new (std::nothrow) ThreadGroup(ranks, time_limit));
    if (made == nullptr || made->published_ == nullptr || made->boxes_ == nullptr) {
      return Status::error(StatusCode::out_of_memory, "ThreadGroup: no memory for ranks = %d.", ranks);
    }
    group = std::move(made);
    return {};
  }

  [[nodiscard]] int size() const { return ranks_; }

  /// Ends the group: the calls of all ranks return an error.
  void abort() {
    const std::lock_guard lock(mutex_);
    fail(Status::error(StatusCode::device_error, "communicator: a rank has called abort."));
  }

  /// Makes the group usable again after an error; no rank may be inside a call.
  void reset() {
    const std::lock_guard lock(mutex_);
    failure_ = {};
    arrived_ = 0;
    for (int i = 0; i < ranks_; ++i) {
      published_[i] = {};
    }
    for (int i = 0; i < ranks_ * ranks_; ++i) {
      boxes_[i] = {};
    }
  }

 private:
  friend class ThreadCommunicator;
  using Clock = std::chrono::steady_clock;

  struct Published {
    const void* data = nullptr;
    std::size_t bytes = 0;
    bool here = false;  // at the next meeting
  };
  struct Box {
    const void* data = nullptr;
    std::size_t bytes = 0;
    bool full = false;
  };

  ThreadGroup(int ranks, std::chrono::milliseconds time_limit)
      : ranks_(ranks),
        time_limit_(time_limit),
        published_(new (std::nothrow) Published[static_cast<std::size_t>(ranks)]),
        boxes_(new (std::nothrow) Box[static_cast<std::size_t>(ranks) * static_cast<std::size_t>(ranks)]) {}

  /// The box for what rank `from` sends to rank `to`.
  Box& box(int from, int to) { return boxes_[from * ranks_ + to]; }

  void fail(const Status& status) {
    if (failure_.ok()) {
      failure_ = status;
    }
    changed_.notify_all();
  }

  /// Waits, with the lock, until `ready()`. Whoever exceeds the time limit fails the group; `missing()` is the rank that it
  /// waited for.
  template <class Ready, class Missing>
  Status wait(std::unique_lock<std::mutex>& lock, int rank, const char* operation, const Ready& ready,
              const Missing& missing) {
    const bool in_time = changed_.wait_until(lock, Clock::now() + time_limit_, [&] { return !failure_.ok() || ready(); });
    if (!in_time) {
      fail(Status::error(StatusCode::device_error, "%s: rank %d has waited %lld ms for rank %d.", operation, rank,
                         static_cast<long long>(time_limit_.count()), missing()));
    }
    return failure_;
  }

  /// All ranks meet; the last one to come lets all go.
  Status meet(std::unique_lock<std::mutex>& lock, int rank, const char* operation) {
    if (!failure_.ok()) {
      return failure_;
    }
    published_[rank].here = true;
    const std::size_t meeting = meetings_;
    if (++arrived_ == ranks_) {
      arrived_ = 0;
      ++meetings_;
      for (int i = 0; i < ranks_; ++i) {
        published_[i].here = false;
      }
      changed_.notify_all();
      return {};
    }
    return wait(
        lock, rank, operation, [&] { return meetings_ != meeting; },
        [&] {
          int missing = 0;
          while (missing + 1 < ranks_ && published_[missing].here) {
            ++missing;
          }
          return missing;
        });
  }

  const int ranks_;
  const std::chrono::milliseconds time_limit_;
  std::mutex mutex_;
  std::condition_variable changed_;
  Status failure_;
  int arrived_ = 0;
  std::size_t meetings_ = 0;
  int copying_ = 0;                         // ranks that read the memory of others
  std::unique_ptr<Published[]> published_;  // [ranks]
  std::unique_ptr<Box[]> boxes_;            // [from][to]
};

/// One thread's end of a group. Transfers are copies between the threads' memory, complete when a call returns. Several
/// groups may be used at once; one rank's calls come from one thread at a time.
class ThreadCommunicator {
 public:
  /// Rank `rank` of `group`, from 0 to group.size() − 1.
  ThreadCommunicator(ThreadGroup& group, int rank) : group_(&group), rank_(rank) {}

  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int size() const { return group_->size(); }

  /// Ends the group, as `ThreadGroup::abort`.
  void abort() const { group_->abort(); }

  template <class Execution>
  Status all_gather(const void* send, void* receive, std::size_t bytes, const Execution& /*on*/) const {
    ThreadGroup& group = *group_;
    std::unique_lock lock(group.mutex_);
    group.published_[rank_].data = send;
    group.published_[rank_].bytes = bytes;
    Status status = group.meet(lock, rank_, "all_gather");
    if (!status.ok()) {
      return status;
    }
    for (int from = 0; from < size(); ++from) {
      if (group.published_[from].bytes != bytes) {
        group.fail(Status::error(StatusCode::invalid_argument,
                                 "all_gather: rank %d has bytes = %zu, but rank %d has bytes = %zu.", rank_, bytes, from,
                                 group.published_[from].bytes));
        return group.failure_;
      }
    }
    ++group.copying_;
    lock.unlock();
    for (int from = 0; from < size(); ++from) {
      std::byte* const to = static_cast<std::byte*>(receive) + static_cast<std::size_t>(from) * bytes;
      const void* const data = group.published_[from].data;
      if (data != to && bytes > 0) {
        std::memcpy(to, data, bytes);
      }
    }
    lock.lock();
    --group.copying_;
    group.changed_.notify_all();
    status = group.meet(lock, rank_, "all_gather");
    if (!status.ok()) {
      group.changed_.wait(lock, [&] { return group.copying_ == 0; });
    }
    return status;  // nobody's memory is read after that
  }

  template <class Execution>
  Status exchange(std::span<const OutgoingBytes> outgoing, std::span<const IncomingBytes> incoming,
                  const Execution& /*on*/) const {
    ThreadGroup& group = *group_;
    std::unique_lock lock(group.mutex_);
    if (!group.failure_.ok()) {
      return group.failure_;
    }
    for (const OutgoingBytes& bytes : outgoing) {
      group.box(rank_, bytes.to) = {bytes.data, bytes.bytes, true};
    }
    group.changed_.notify_all();
    for (const IncomingBytes& bytes : incoming) {
      ThreadGroup::Box& box = group.box(bytes.from, rank_);
      Status status = group.wait(
          lock, rank_, "exchange", [&] { return box.full; }, [&] { return bytes.from; });
      if (!status.ok()) {
        return status;
      }
      if (box.bytes != bytes.bytes) {
        group.fail(Status::error(StatusCode::invalid_argument,
                                 "exchange: rank %d sends bytes = %zu, but rank %d expects bytes = %zu.", bytes.from,
                                 box.bytes, rank_, bytes.bytes));
        return group.failure_;
      }
      if (bytes.bytes > 0) {
        std::memcpy(bytes.data, box.data, bytes.bytes);
      }
      box.full = false;
      group.changed_.notify_all();
    }
    for (const OutgoingBytes& bytes : outgoing) {
      Status status = group.wait(
          lock, rank_, "exchange", [&] { return !group.box(rank_, bytes.to).full; }, [&] { return bytes.to; });
      if (!status.ok()) {
        return status;
      }
    }
    return {};
  }

 private:
  ThreadGroup* group_;
  int rank_;
};

}  // namespace jrt
