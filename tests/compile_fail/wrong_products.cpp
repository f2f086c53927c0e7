// SPDX-License-Identifier: Apache-2.0
// expect: Products needs the bool constant splits_numbers
#include <jrt/jrt.hpp>

struct Config : jrt::PrefixLinearAttention<float, 16, 64> {
  using Products = int;
};
jrt::PrefillArgs<Config> args;
