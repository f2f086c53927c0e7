// SPDX-License-Identifier: Apache-2.0
// Without a device calls say so, and wrong arguments are still reported as such. Run with CUDA_VISIBLE_DEVICES empty.
#include <cstdio>
#include <jrt/cuda.cuh>

int main() {
  using Config = jrt::BasedLinearAttention<float, 16, 64>;
  float memory[2 * 64] = {};
  jrt::PrefillArgs<Config> args;
  args.query = jrt::view_bthd<const float>(memory, {1, 2, 1, 16});
  args.key = args.query;
  args.value = jrt::view_bthd<const float>(memory, {1, 2, 1, 64});
  args.output = jrt::view_bthd(memory, {1, 2, 1, 64});
  const jrt::Cuda on;
  const jrt::Status owned = jrt::prefill(args, on);
  const jrt::Status plain = jrt::prefill(args, {}, on);
  args.key.tokens = 1;
  const jrt::Status wrong = jrt::prefill(args, {}, on);
  std::printf("%s\n%s\n%s\n", owned.c_str(), plain.c_str(), wrong.c_str());
  const bool good = owned.code() == jrt::StatusCode::device_error && plain.code() == jrt::StatusCode::device_error &&
                    wrong.code() == jrt::StatusCode::invalid_argument;
  return good ? 0 : 1;
}
