// SPDX-License-Identifier: Apache-2.0
#include <optional>
#include <vector>

#include "support/on_gpu.cuh"
#include "support/recall_training.hpp"

std::optional<std::vector<double>> support::train_on_gpu(int steps, unsigned seed) {
  if (!has_gpu()) {
    return std::nullopt;
  }
  RecallTraining training(seed);
  std::vector<double> losses;
  for (int i = 0; i < steps; ++i) {
    losses.push_back(training.step<OnGpu>());
  }
  return losses;
}
