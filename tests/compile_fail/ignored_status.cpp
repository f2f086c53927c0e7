// SPDX-License-Identifier: Apache-2.0
// expect: nodiscard
#include <jrt/jrt.hpp>

void run(const jrt::PrefillArgs<jrt::PrefixLinearAttention<float, 16, 64>>& args) {
  jrt::prefill(args, jrt::Cpu{});
}
