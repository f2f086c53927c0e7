// SPDX-License-Identifier: Apache-2.0
// expect: Linear's Normaliser must be a SumNormaliser
#include <jrt/jrt.hpp>

struct Linear : jrt::PrefixLinearAttention<float, 16, 64> {
  using Normaliser = jrt::Unnormalised;
};
jrt::PrefillArgs<jrt::HybridAttention<Linear, jrt::WindowBeside<Linear, 128>>> args;
