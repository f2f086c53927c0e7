// SPDX-License-Identifier: Apache-2.0
// expect: SplitProducts keeps 16 bits of a number, double is for more
#include <jrt/jrt.hpp>

struct Config : jrt::PrefixLinearAttention<double, 16, 64> {
  using Products = jrt::SplitProducts;
};
jrt::PrefillArgs<Config> args;
