// SPDX-License-Identifier: Apache-2.0
#include <jrt/cpu.hpp>
#include <jrt/thread_pool.hpp>

#include "support/attention_run.hpp"

namespace support {

namespace {

struct OnHost {
  template <class T>
  struct Array {
    std::vector<T> values;
    explicit Array(std::vector<T> from) : values(std::move(from)) {}
    T* data() { return values.data(); }
    [[nodiscard]] std::vector<T> read() const { return values; }
  };

  static jrt::Cpu<jrt::ThreadPool> execution() {
    static jrt::ThreadPool threads(2);
    return jrt::Cpu{threads};
  }
  static void wait() {}
};

}  // namespace

RunResult run_on_host(const PromptData& data) {
  return run<OnHost>(data);
}

}  // namespace support
