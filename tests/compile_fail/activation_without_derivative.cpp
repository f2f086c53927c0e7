// SPDX-License-Identifier: Apache-2.0
// expect: Add static T derivative(T sum)
#include <jrt/jrt.hpp>

struct Cube {
  template <class T>
  static T apply(T sum) {
    return sum * sum * sum;
  }
};
struct Config : jrt::GatedConvolution<float, 3> {
  using Activation = Cube;
};
jrt::Status run(const jrt::BackwardArgs<Config>& args) {
  return jrt::backward(args, jrt::Cpu{});
}
