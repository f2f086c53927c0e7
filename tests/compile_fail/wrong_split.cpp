// SPDX-License-Identifier: Apache-2.0
// expect: Split needs a static std::int64_t segments(tokens, heads_in_batch, workers)
#include <jrt/jrt.hpp>

struct Two {
  static int segments() { return 2; }
};
struct Config : jrt::PrefixLinearAttention<float, 16, 64> {
  using Split = Two;
};
jrt::PrefillArgs<Config> args;
