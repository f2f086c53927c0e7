// SPDX-License-Identifier: Apache-2.0
// One layer of prefix linear attention learns to recall facts, by gradient descent with the library alone:
//   05_training [--steps N]
// on the CPU, and on a GPU if there is one. It fails if the loss does not fall.
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <jrt/jrt.hpp>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/on_host.hpp"
#include "support/recall_training.hpp"

namespace {

double mean(const std::vector<double>& losses, std::size_t first, std::size_t end) {
  const auto begin = losses.begin();
  return std::accumulate(begin + static_cast<std::ptrdiff_t>(first), begin + static_cast<std::ptrdiff_t>(end), 0.0) /
         static_cast<double>(end - first);
}

/// Prints means of ten stretches; whether the loss fell to a tenth of a guess's.
bool report(const char* where, const std::vector<double>& losses) {
  const std::size_t stretch = losses.size() / 10;
  std::printf("%s:", where);
  for (std::size_t i = 0; i < 10; ++i) {
    std::printf(" %.3f", mean(losses, i * stretch, (i + 1) * stretch));
  }
  const double last = mean(losses, losses.size() - stretch, losses.size());
  const bool learned = last < 0.1 * std::log(support::RecallTraining::symbols);  // false for NaN, too
  std::printf("  %s\n", learned ? "learned" : "DID NOT LEARN");
  return learned;
}

}  // namespace

int main(int argc, char** argv) try {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (!arguments.empty() && (arguments.size() != 2 || arguments[0] != "--steps")) {
    std::fprintf(stderr, "usage: 05_training [--steps N]\n");
    return 2;
  }
  const int steps = arguments.empty() ? 300 : std::stoi(arguments[1]);
  if (steps < 10) {
    throw std::invalid_argument("--steps must be at least 10");
  }
  constexpr unsigned seed = 1;
  std::printf("%d facts a sequence, questions at every token; a guess costs %.3f. Loss, mean of tenths of %d steps:\n",
              support::RecallTraining::facts, std::log(support::RecallTraining::symbols), steps);
  support::RecallTraining training(seed);
  std::vector<double> losses;
  for (int i = 0; i < steps; ++i) {
    losses.push_back(training.step<support::OnHost>());
  }
  bool good = report("CPU", losses);
#if defined(JRT_EXAMPLE_CUDA)
  if (const auto device = support::train_on_gpu(steps, seed)) {
    good = report("GPU", *device) && good;
  } else {
    std::printf("GPU: skipped, there is no CUDA device\n");
  }
#else
  std::printf("GPU: skipped, built without CUDA\n");
#endif
  return good ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "05_training: %s\n", error.what());
  return 1;
}
