// SPDX-License-Identifier: Apache-2.0
// expect: Element and StateScalar must each be float, double, jrt::Half or jrt::BFloat16
#include <jrt/jrt.hpp>

struct Config : jrt::PrefixLinearAttention<float, 16, 64> {
  using StateScalar = int;
};
jrt::PrefillArgs<Config> args;
