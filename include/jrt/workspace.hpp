// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/integer.hpp"
#include "jrt/status.hpp"

namespace jrt {

/// Scratch memory owned by the caller, at least as large as the operation's `*_workspace_bytes` returns. Any alignment
/// works (the size includes the slack); the contents need not be initialised and may be discarded after the call.
struct Workspace {
  void* data = nullptr;
  std::size_t bytes = 0;
};

namespace detail {

/// Slices a workspace. Constructed without memory it only counts bytes, so that one function serves sizing and running.
class Arena {
 public:
  static constexpr std::size_t alignment = 64;

  Arena() = default;
  explicit Arena(const Workspace& workspace)
      : base_(static_cast<std::byte*>(workspace.data)),
        offset_(static_cast<std::size_t>(-reinterpret_cast<std::intptr_t>(workspace.data)) % alignment) {}

  /// `count` values of T, aligned; null while counting.
  template <class T>
  T* take(std::int64_t count) {
    std::byte* slice = base_ == nullptr ? nullptr : base_ + offset_;
    offset_ += round_up(static_cast<std::size_t>(count) * sizeof(T), alignment);
    return reinterpret_cast<T*>(slice);
  }

  /// Bytes that a workspace of any alignment needs for all slices taken while counting.
  [[nodiscard]] std::size_t bytes_needed() const { return offset_ == 0 ? 0 : offset_ + alignment - 1; }

 private:
  std::byte* base_ = nullptr;
  std::size_t offset_ = 0;
};

/// Bytes of workspace for the slices that `work.take(arena)` takes.
template <class Work>
std::size_t counted_bytes(Work work) {
  Arena counting;
  work.take(counting);
  return counting.bytes_needed();
}

}  // namespace detail

}  // namespace jrt
