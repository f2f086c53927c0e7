// SPDX-License-Identifier: Apache-2.0
// expect: Linear's Mask must not read the future
#include <jrt/jrt.hpp>

struct Linear : jrt::PrefixLinearAttention<float, 16, 64> {
  using Mask = jrt::FullMask;
};
jrt::PrefillArgs<jrt::HybridAttention<Linear, jrt::WindowBeside<Linear, 128>>> args;
