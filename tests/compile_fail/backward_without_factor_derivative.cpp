// SPDX-License-Identifier: Apache-2.0
// expect: the Normaliser has no derivative
#include <jrt/jrt.hpp>

struct HalfMean {
  static constexpr bool uses_denominator = true;
  static constexpr bool accepts_signed_kernel = false;
  template <class T>
  static T factor(T denominator) {
    return denominator == 0 ? T(0) : T(0.5) / denominator;
  }
};
struct Config : jrt::PrefixLinearAttention<float, 16, 64> {
  using Normaliser = HalfMean;
};
jrt::Status run(const jrt::BackwardArgs<Config>& args) {
  return jrt::backward(args, jrt::Cpu{});
}
