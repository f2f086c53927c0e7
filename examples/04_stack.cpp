// SPDX-License-Identifier: Apache-2.0
// A convolution, prefix linear attention and a window, composed at compile time into one stack with one state:
//   04_stack [--tokens N]
// prefills a prompt with a checkpoint in its middle, decodes, goes back to a fork and to the checkpoint and decodes again;
// on the CPU, and on a GPU if there is one. Then it prints what a sequence keeps beside a Transformer's cache.
#include <cstdio>
#include <exception>
#include <jrt/jrt.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/on_host.hpp"
#include "support/stack_run.hpp"

namespace {

bool report(const char* where, const support::StackResult& result) {
  const bool good = result.same_after_rollback && result.checkpoint_difference <= 1e-5;
  std::printf("%s: last output %.6f; again from the fork: %s; again from the checkpoint: difference %.1e\n", where,
              static_cast<double>(result.outputs.back()), result.same_after_rollback ? "same bits" : "DIFFERENT",
              result.checkpoint_difference);
  return good;
}

}  // namespace

int main(int argc, char** argv) try {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (!arguments.empty() && (arguments.size() != 2 || arguments[0] != "--tokens")) {
    std::fprintf(stderr, "usage: 04_stack [--tokens N]\n");
    return 2;
  }
  const std::int64_t prompt = arguments.empty() ? 600 : std::stoll(arguments[1]);
  if (prompt < 2) {
    throw std::invalid_argument("--tokens must be at least 2");
  }
  const auto input = support::random_stack_input(prompt, prompt / 3, 20);
  const auto host = support::run_stack<support::OnHost>(input);
  bool good = report("CPU", host);
#if defined(JRT_EXAMPLE_CUDA)
  if (const auto device = support::run_stack_on_gpu(input)) {
    const double difference = support::relative_difference(device->outputs, host.outputs);
    good = report("GPU", *device) && good && difference <= 1e-5;
    std::printf("difference between the two: %.1e\n", difference);
  } else {
    std::printf("GPU: skipped, there is no CUDA device\n");
  }
#else
  std::printf("GPU: skipped, built without CUDA\n");
#endif

  using support::Model;
  std::printf("\nstate of a sequence: %.1f KiB (convolution %.1f, linear attention %.1f, window %.1f), at any length\n",
              static_cast<double>(Model::slot_bytes()) / 1024.0,
              static_cast<double>(Model::LayerAt<0>::slot_bytes) / 1024.0,
              static_cast<double>(Model::LayerAt<1>::slot_bytes) / 1024.0,
              static_cast<double>(Model::LayerAt<2>::slot_bytes) / 1024.0);
  std::printf("%12s %28s %8s\n", "tokens", "three layers of KV cache", "ratio");
  for (const double tokens : {1024.0, 32768.0, 1048576.0}) {
    const double cache = tokens * Model::layers * 2 * support::model_width * sizeof(float);
    std::printf("%12.0f %24.1f MiB %7.0fx\n", tokens, cache / 1048576.0, cache / static_cast<double>(Model::slot_bytes()));
  }
  std::printf("%s\n", good ? "All results agree." : "MISMATCH");
  return good ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "04_stack: %s\n", error.what());
  return 1;
}
