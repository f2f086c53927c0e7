// SPDX-License-Identifier: Apache-2.0
// A program compiled without exceptions and run-time type information: operations on a pool of threads, errors as statuses,
// and a pool that the system refuses threads.
#include <sys/resource.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <jrt/jrt.hpp>
#include <vector>

#if defined(__cpp_exceptions) || defined(__cpp_rtti)
#error "this program tests the library without exceptions and run-time type information"
#endif

namespace {

using Attention = jrt::PrefixLinearAttention<float, 8, 8>;
using Format = jrt::StateFormatOf<Attention>;

bool runs_operations() {
  constexpr jrt::TensorShape shape{.batch = 2, .tokens = 5, .dim = 8};
  std::vector<float> ones(2 * 5 * 8, 1.0F);
  std::vector<float> output(2 * 5 * 8);
  jrt::StatePool<Format> states;
  jrt::PrefillArgs<Attention> args;
  args.query = jrt::view_bthd<const float>(ones.data(), shape);
  args.key = args.query;
  args.value = args.query;
  args.output = jrt::view_bthd(output.data(), shape);
  jrt::ThreadPool pool(2);
  if (!jrt::StatePool<Format>::allocate(2, 1, states).ok()) {
    return false;
  }
  args.final_state = {states.view()};
  if (!jrt::prefill(args, jrt::Cpu{pool}).ok() || std::abs(output.back() - 1.0F) > 1e-5F) {
    return false;
  }
  std::vector<std::byte> saved(static_cast<std::size_t>(jrt::saved_states_bytes<Format>(2, 1)));
  const jrt::StateSlots<Format> slots{states.view()};
  if (!jrt::save_states(slots, 2, saved, jrt::Cpu{pool}).ok() ||
      !jrt::load_states<Format>(saved, slots, 2, jrt::Cpu{}).ok()) {
    return false;
  }
  args.value = {};
  return jrt::prefill(args, jrt::Cpu{pool}).code() == jrt::StatusCode::invalid_argument;
}

/// A thousand stacks do not fit half a GiB of addresses.
bool takes_refusals() {
  rlimit before{};
  getrlimit(RLIMIT_AS, &before);
  rlimit little = before;
  little.rlim_cur = rlim_t{512} << 20;
  if (setrlimit(RLIMIT_AS, &little) != 0) {
    std::printf("the limit of addresses cannot be set\n");
    return false;
  }
  std::atomic<int> runs = 0;
  int threads = 0;
  {
    jrt::ThreadPool pool(1000);
    threads = pool.concurrency();
    pool.run(100, [&](std::int64_t /*task*/, int /*worker*/) { ++runs; });
  }
  setrlimit(RLIMIT_AS, &before);
  std::printf("%d of 1000 threads started\n", threads);
  return threads >= 1 && threads < 1000 && runs == 100;
}

}  // namespace

int main() {
  return runs_operations() && takes_refusals() ? 0 : 1;
}
