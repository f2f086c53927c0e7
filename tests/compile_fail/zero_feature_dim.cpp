// SPDX-License-Identifier: Apache-2.0
// expect: feature_dim must be at least 1
#include <jrt/jrt.hpp>

struct Map : jrt::Square<16> {
  static constexpr int feature_dim = 0;
};
struct Config : jrt::PrefixLinearAttention<float, 16, 64> {
  using FeatureMap = Map;
};
jrt::PrefillArgs<Config> args;
