// SPDX-License-Identifier: Apache-2.0
// expect: ZeroKeyPadding is defined for the published prefix and causal masks only
#include <jrt/jrt.hpp>

struct Config : jrt::PrefixLinearAttention<float, 16, 64> {
  using Mask = jrt::FullMask;
  using Padding = jrt::ZeroKeyPadding;
};
jrt::PrefillArgs<Config> args;
