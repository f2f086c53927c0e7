// SPDX-License-Identifier: Apache-2.0
// expect: Rotary rotates vectors of another size; use RotaryHalves<head_dim>
#include <jrt/jrt.hpp>

struct Config : jrt::SlidingWindowAttention<float, 64, 128> {
  using Rotary = jrt::RotaryHalves<32>;
};
jrt::PrefillArgs<Config> args;
