// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <jrt/execution/cpu.hpp>
#include <utility>
#include <vector>

namespace support {

/// Where a run's tensors are and how it waits for results: host memory, one thread. on_gpu.cuh has the GPU's.
struct OnHost {
  template <class T>
  class Array {
   public:
    explicit Array(std::vector<T> values) : values_(std::move(values)) {}
    T* data() { return values_.data(); }
    [[nodiscard]] std::vector<T> read() const { return values_; }

   private:
    std::vector<T> values_;
  };

  static jrt::Cpu<> execution() { return {}; }
  static void wait() {}
};

}  // namespace support
