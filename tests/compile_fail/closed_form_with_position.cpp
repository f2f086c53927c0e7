// SPDX-License-Identifier: Apache-2.0
// expect: a closed form in q.k alone cannot depend on the position
#include <jrt/jrt.hpp>

struct Map : jrt::Identity<16> {
  static constexpr bool nonnegative_kernel = true;
  static constexpr bool needs_position = true;
  template <class T>
  void expand(const T* x, T* features, std::int64_t position) const {
    features[0] = x[0] * static_cast<T>(position);
  }
};
struct Config : jrt::PrefixLinearAttention<float, 16, 64> {
  using FeatureMap = Map;
};
jrt::PrefillArgs<Config> args;
