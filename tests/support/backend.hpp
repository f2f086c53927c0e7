// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <jrt/cpu.hpp>
#include <jrt/thread_pool.hpp>
#include <vector>

/// Where a test runs. Test bodies are written once, templated on one of these: `Array` is memory that the backend can read,
/// `execution()` the argument that selects it.
namespace jrt::test {

/// Host memory, filled from and read back as a vector.
template <class T>
class HostArray {
 public:
  HostArray() = default;
  explicit HostArray(std::vector<T> values) : values_(std::move(values)) {}

  T* data() { return values_.data(); }
  [[nodiscard]] std::vector<T> read() const { return values_; }

 private:
  std::vector<T> values_;
};

struct CpuSerial {
  template <class T>
  using Array = HostArray<T>;

  static Cpu<SerialExecutor> execution() { return {}; }
};

/// Three threads: a number that divides neither heads nor segments evenly.
struct CpuThreads {
  template <class T>
  using Array = HostArray<T>;

  static Cpu<ThreadPool> execution() {
    static ThreadPool pool(3);
    return Cpu{pool};
  }
};

}  // namespace jrt::test

#define JRT_TEST_BACKENDS jrt::test::CpuSerial, jrt::test::CpuThreads
