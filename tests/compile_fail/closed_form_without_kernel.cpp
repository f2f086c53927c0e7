// SPDX-License-Identifier: Apache-2.0
// expect: a FeatureMap with has_closed_form needs T kernel(T dot) const
#include <jrt/jrt.hpp>

struct Map : jrt::EluPlusOne<16> {
  static constexpr bool has_closed_form = true;
};
struct Config : jrt::PrefixLinearAttention<float, 16, 64> {
  using FeatureMap = Map;
};
jrt::PrefillArgs<Config> args;
