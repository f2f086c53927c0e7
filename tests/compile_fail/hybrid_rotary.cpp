// SPDX-License-Identifier: Apache-2.0
// expect: Window must not turn queries and keys, since the feature map sees them unturned
#include <jrt/jrt.hpp>

using Linear = jrt::PrefixLinearAttention<float, 16, 64>;
struct Turned : jrt::WindowBeside<Linear, 128> {
  using Rotary = jrt::RotaryHalves<16>;
};
jrt::DecodeArgs<jrt::WindowedLinearAttention<Linear, Turned>> args;
