// SPDX-License-Identifier: Apache-2.0
// expect: the FeatureMap has no derivative
#include <jrt/jrt.hpp>

struct Map {
  static constexpr int input_dim = 4;
  static constexpr int feature_dim = 4;
  static constexpr const char* name = "map";
  static constexpr bool nonnegative_kernel = true;
  static constexpr bool has_closed_form = false;
  static constexpr bool needs_position = false;
  template <class T>
  void expand(const T* x, T* features) const {
    for (int i = 0; i < 4; ++i) {
      features[i] = x[i] * x[i];
    }
  }
};
struct Config : jrt::PrefixLinearAttention<float, 4, 8> {
  using FeatureMap = Map;
};
jrt::Status run(const jrt::BackwardArgs<Config>& args) {
  return jrt::backward(args, jrt::Cpu{});
}
