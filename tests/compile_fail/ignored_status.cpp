// SPDX-License-Identifier: Apache-2.0
// expect: ignoring returned value of type 'jrt::Status', declared with attribute 'nodiscard'
#include <jrt/jrt.hpp>

void run(const jrt::PrefillArgs<jrt::PrefixLinearAttention<float, 16, 64>>& args) { jrt::prefill(args, jrt::Cpu{}); }
