// SPDX-License-Identifier: Apache-2.0
// The same calls on the GPU: what 01_quickstart does, with another execution argument and memory that the device can read.
//   03_gpu [FILE.safetensors | --tokens N [--heads H]]
// prints both backends' results side by side.
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "support/attention_run.hpp"
#include "support/on_gpu.cuh"
#include "support/prompt_data.hpp"

int main(int argc, char** argv) try {
  if (!support::has_gpu()) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  const auto data = support::prompt_data_from(std::vector<std::string>(argv + 1, argv + argc));
  if (!data) {
    std::fprintf(stderr, "usage: 03_gpu [FILE.safetensors | --tokens N [--heads H]]\n");
    return 2;
  }
  const auto host = support::run_on_host(*data);
  const auto device = support::run<support::OnGpu>(*data);
  std::printf("%-24s %14s %14s\n", "", "CPU", "GPU");
  std::printf("%-24s %14.0f %14.0f\n", "prefill, tokens/s", host.prefill_rate, device.prefill_rate);
  std::printf("%-24s %14.0f %14.0f\n", "decode, tokens/s", host.decode_rate, device.decode_rate);
  std::printf("%-24s %14.6f %14.6f\n", "first output", host.outputs.front(), device.outputs.front());
  std::printf("%-24s %14.6f %14.6f\n", "last output", host.outputs.back(), device.outputs.back());
  const double difference = support::relative_error(device.outputs, host.outputs);
  bool good = difference <= 4e-6;  // each is within 2e-6 of the exact outputs
  if (!data->expected.empty()) {
    const double host_error = support::relative_error(host.outputs, data->expected);
    const double device_error = support::relative_error(device.outputs, data->expected);
    std::printf("%-24s %14.1e %14.1e\n", "error to the expected", host_error, device_error);
    good = good && host_error <= 2e-6 && device_error <= 2e-6;
  }
  std::printf("difference between the two: %.1e\n%s\n", difference, good ? "The outputs match." : "MISMATCH");
  return good ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "03_gpu: %s\n", error.what());
  return 1;
}
