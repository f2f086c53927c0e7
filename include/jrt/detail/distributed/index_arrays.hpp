// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "jrt/status.hpp"

namespace jrt::detail {

/// `count` arrays of int32 in one allocation of host memory, filled by a function that is run twice: to count, then to
/// write. Operations read them where the executing device can: in a copy that the caller makes, or here.
template <int count>
class IndexArrays {
 public:
  class Writer {
   public:
    void push(int array, std::int64_t value) {
      if (data_ != nullptr) {
        data_[offsets_[array] + used_[array]] = static_cast<std::int32_t>(value);
      }
      ++used_[array];
    }
    [[nodiscard]] std::int64_t used(int array) const { return used_[array]; }

   private:
    friend class IndexArrays;
    std::int32_t* data_ = nullptr;
    const std::int64_t* offsets_ = nullptr;
    std::int64_t used_[count] = {};
  };

  template <class Fill>
  Status fill(const Fill& fill_arrays) {
    Writer counting;
    fill_arrays(counting);
    offsets_[0] = 0;
    for (int i = 0; i < count; ++i) {
      offsets_[i + 1] = offsets_[i] + counting.used_[i];
    }
    memory_.reset(new (std::nothrow) std::int32_t[static_cast<std::size_t>(offsets_[count]) + 1]);
    if (memory_ == nullptr) {
      return Status::error(StatusCode::out_of_memory, "context plan: no memory for %lld indices.",
                           static_cast<long long>(offsets_[count]));
    }
    Writer writing;
    writing.data_ = memory_.get();
    writing.offsets_ = offsets_;
    fill_arrays(writing);
    placed_ = memory_.get();
    return {};
  }

  [[nodiscard]] std::int64_t size(int array) const { return offsets_[array + 1] - offsets_[array]; }
  /// An array in memory that the executing device can read; null if it is empty.
  [[nodiscard]] const std::int32_t* operator[](int array) const {
    return size(array) == 0 ? nullptr : placed_ + offsets_[array];
  }
  [[nodiscard]] const std::int32_t* host(int array) const { return memory_.get() + offsets_[array]; }

  [[nodiscard]] const std::int32_t* host_data() const { return memory_.get(); }
  [[nodiscard]] std::size_t bytes() const { return static_cast<std::size_t>(offsets_[count]) * sizeof(std::int32_t); }
  void place(const std::int32_t* copy) { placed_ = copy; }
  [[nodiscard]] bool is_placed() const { return placed_ != memory_.get(); }

 private:
  std::unique_ptr<std::int32_t[]> memory_;
  const std::int32_t* placed_ = nullptr;
  std::int64_t offsets_[count + 1] = {};
};

}  // namespace jrt::detail
