// SPDX-License-Identifier: Apache-2.0
// expect: Normaliser needs uses_denominator
#include <jrt/jrt.hpp>

struct Half {
  static constexpr bool uses_denominator = true;
};
struct Config : jrt::PrefixLinearAttention<float, 16, 64> {
  using Normaliser = Half;
};
jrt::PrefillArgs<Config> args;
