// SPDX-License-Identifier: Apache-2.0
// expect: Linear's FeatureMap must have a kernel that is never negative
#include <jrt/jrt.hpp>

struct Linear : jrt::PrefixLinearAttention<float, 16, 64> {
  using FeatureMap = jrt::Identity<16>;
  using Normaliser = jrt::Unnormalised;
};
jrt::PrefillArgs<jrt::HybridAttention<Linear, jrt::WindowBeside<Linear, 128>>> args;
