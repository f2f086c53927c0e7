// SPDX-License-Identifier: Apache-2.0
// expect: the FeatureMap has no derivative
#include <jrt/jrt.hpp>

struct Map {
  static constexpr int input_dim = 4;
  static constexpr int feature_dim = 4;
  static constexpr const char* name = "map";
  static constexpr bool nonnegative_kernel = false;
  static constexpr bool has_closed_form = true;
  static constexpr bool needs_position = false;
  template <class T>
  T kernel(T dot) const {
    return dot;
  }
  template <class T>
  void expand(const T* x, T* features) const {
    for (int i = 0; i < 4; ++i) {
      features[i] = x[i];
    }
  }
  template <class T>
  void expand_vjp(const T* /*x*/, const T* features_gradient, T* x_gradient) const {
    for (int i = 0; i < 4; ++i) {
      x_gradient[i] = features_gradient[i];
    }
  }
};
struct Config : jrt::PrefixLinearAttention<float, 4, 8> {
  using FeatureMap = Map;
  using Normaliser = jrt::Unnormalised;
};
jrt::Status run(const jrt::BackwardArgs<Config>& args) {
  return jrt::backward(args, jrt::Cpu{});
}
