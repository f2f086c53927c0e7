// SPDX-License-Identifier: Apache-2.0
// expect: there is no backend for this execution argument
#include <jrt/jrt.hpp>

struct Abacus {};
jrt::Status run(const jrt::PrefillArgs<jrt::PrefixLinearAttention<float, 16, 64>>& args) {
  return jrt::prefill(args, Abacus{});
}
