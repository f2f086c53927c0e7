// SPDX-License-Identifier: Apache-2.0
// expect: Window must not rotate queries and keys, since the feature map sees them unrotated
#include <jrt/jrt.hpp>

using Linear = jrt::PrefixLinearAttention<float, 16, 64>;
struct Turned : jrt::WindowBeside<Linear, 128> {
  using Rotary = jrt::RotaryHalves<16>;
};
jrt::DecodeArgs<jrt::HybridAttention<Linear, Turned>> args;
