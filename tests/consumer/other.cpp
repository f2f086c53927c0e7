// SPDX-License-Identifier: Apache-2.0
#include <jrt/jrt.hpp>

using Attention = jrt::PrefixLinearAttention<float, 8, 8>;

bool run_prefill(const jrt::PrefillArgs<Attention>& args) {
  return jrt::prefill(args, jrt::Cpu{}).ok();
}
