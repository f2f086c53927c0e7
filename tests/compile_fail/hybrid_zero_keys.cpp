// SPDX-License-Identifier: Apache-2.0
// expect: Linear's Padding must be DropPadding
#include <jrt/jrt.hpp>

struct Linear : jrt::PrefixLinearAttention<float, 16, 64> {
  using Padding = jrt::ZeroKeyPadding;
};
jrt::PrefillArgs<jrt::HybridAttention<Linear, jrt::WindowBeside<Linear, 128>>> args;
