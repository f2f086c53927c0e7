// SPDX-License-Identifier: Apache-2.0
// expect: with needs_position: expand(x, features, position)
#include <jrt/jrt.hpp>

struct Map : jrt::EluPlusOne<16> {
  static constexpr bool needs_position = true;
};
struct Config : jrt::PrefixLinearAttention<float, 16, 64> {
  using FeatureMap = Map;
};
jrt::PrefillArgs<Config> args;
