// SPDX-License-Identifier: Apache-2.0
// expect: Linear's FeatureMap must have a closed form and need no position
#include <jrt/jrt.hpp>

struct Linear : jrt::PrefixLinearAttention<float, 16, 64> {
  using FeatureMap = jrt::EluPlusOne<16>;
};
jrt::PrefillArgs<jrt::HybridAttention<Linear, jrt::WindowBeside<Linear, 128>>> args;
