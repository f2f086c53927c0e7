// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstdio>
#include <jrt/jrt.hpp>
#include <vector>

using Attention = jrt::PrefixLinearAttention<float, 8, 8>;

bool run_prefill(const jrt::PrefillArgs<Attention>& args);

int main() {
  constexpr jrt::TensorShape shape{.tokens = 5, .dim = 8};
  std::vector<float> ones(5 * 8, 1.0F);
  std::vector<float> output(5 * 8);
  jrt::PrefillArgs<Attention> args{.query = jrt::view_bthd(ones.data(), shape), .key = jrt::view_bthd(ones.data(), shape)};
  args.value = args.key;
  args.output = jrt::view_bthd(output.data(), shape);
  const bool good = run_prefill(args) && jrt::prefill(args, jrt::Cpu{}).ok() && std::abs(output.back() - 1.0F) < 1e-5F;
  std::printf("jrt %d.%d.%d: %s\n", JRT_VERSION_MAJOR, JRT_VERSION_MINOR, JRT_VERSION_PATCH, good ? "works" : "FAILED");
  return good ? 0 : 1;
}
