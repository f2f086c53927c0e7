// SPDX-License-Identifier: Apache-2.0
// expect: Padding needs the bool constant keeps_padded_keys
#include <jrt/jrt.hpp>

struct Config : jrt::PrefixLinearAttention<float, 16, 64> {
  using Padding = jrt::PrefixMask;
};
jrt::PrefillArgs<Config> args;
