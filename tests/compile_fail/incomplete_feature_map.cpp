// SPDX-License-Identifier: Apache-2.0
// expect: FeatureMap does not satisfy jrt::FeatureMap
#include <jrt/jrt.hpp>

struct Map {
  static constexpr int input_dim = 16;
  static constexpr int feature_dim = 16;
};
struct Config : jrt::PrefixLinearAttention<float, 16, 64> {
  using FeatureMap = Map;
};
jrt::PrefillArgs<Config> args;
