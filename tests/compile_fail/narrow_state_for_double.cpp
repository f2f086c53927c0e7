// SPDX-License-Identifier: Apache-2.0
// expect: double elements need a double state
#include <jrt/jrt.hpp>

struct Config : jrt::PrefixLinearAttention<double, 16, 64> {
  using StateScalar = float;
};
jrt::PrefillArgs<Config> args;
