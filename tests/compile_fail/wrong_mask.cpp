// SPDX-License-Identifier: Apache-2.0
// expect: Mask needs the bool constants reads_encoder and reads_future
#include <jrt/jrt.hpp>

struct Config : jrt::PrefixLinearAttention<float, 16, 64> {
  using Mask = int;
};
jrt::PrefillArgs<Config> args;
