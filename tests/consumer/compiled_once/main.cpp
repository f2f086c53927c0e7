// SPDX-License-Identifier: Apache-2.0
// A call of an operator that another file compiles. With one key, an output is its value.
#include <cmath>
#include <cstdio>
#include <vector>

#include "operator.hpp"

#if defined(EIGEN_WORLD_VERSION)
#error "the header of an operator that is compiled elsewhere includes Eigen"
#endif

int main() {
  const std::vector<float> row(16, 0.5F);
  std::vector<float> value(64);
  for (std::size_t c = 0; c < value.size(); ++c) {
    value[c] = static_cast<float>(c) - 20;
  }
  std::vector<float> output(64);
  jrt::PrefillArgs<Operator> args;
  args.query = jrt::view_bthd(row.data(), {1, 1, 1, 16});
  args.key = args.query;
  args.value = jrt::view_bthd<const float>(value.data(), {1, 1, 1, 64});
  args.output = jrt::view_bthd(output.data(), {1, 1, 1, 64});
  std::vector<std::byte> workspace(jrt::prefill_workspace_bytes(args, jrt::Cpu{}));
  const jrt::Status status = jrt::prefill(args, {workspace.data(), workspace.size()}, jrt::Cpu{});
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.message().data());
    return 1;
  }
  for (std::size_t c = 0; c < value.size(); ++c) {
    if (std::abs(output[c] - value[c]) > 1e-4F) {
      std::fprintf(stderr, "output[%zu] is %g, but the one value is %g\n", c, static_cast<double>(output[c]),
                   static_cast<double>(value[c]));
      return 1;
    }
  }
}
