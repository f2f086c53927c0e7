// SPDX-License-Identifier: Apache-2.0
#include <jrt/cpu.hpp>
#include <jrt/thread_pool.hpp>

#include "support/attention_run.hpp"
#include "support/on_host.hpp"

namespace support {

namespace {

/// Two threads.
struct OnThreads : OnHost {
  static jrt::Cpu<jrt::ThreadPool> execution() {
    static jrt::ThreadPool threads(2);
    return jrt::Cpu{threads};
  }
};

}  // namespace

RunResult run_on_host(const PromptData& data) {
  return run<OnThreads>(data);
}

}  // namespace support
