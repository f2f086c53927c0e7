// SPDX-License-Identifier: Apache-2.0
// expect: FeatureMap's kernel may be negative
#include <jrt/jrt.hpp>

struct Config : jrt::PrefixLinearAttention<float, 16, 64> {
  using FeatureMap = jrt::Identity<16>;
};
jrt::PrefillArgs<Config> args;
