// SPDX-License-Identifier: Apache-2.0
// expect: with this Mask queries read all tokens
#include <jrt/jrt.hpp>

struct Bidirectional : jrt::PrefixLinearAttention<float, 16, 64> {
  using Mask = jrt::FullMask;
};
jrt::Status status =
    jrt::prefill_with_checkpoints(jrt::PrefillArgs<Bidirectional>{}, jrt::Checkpoints<Bidirectional>{}, jrt::Cpu{});
