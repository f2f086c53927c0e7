// SPDX-License-Identifier: Apache-2.0
#include "support/on_gpu.cuh"
#include "support/stack_run.hpp"

std::optional<support::StackResult> support::run_stack_on_gpu(const StackInput& input) {
  if (!has_gpu()) {
    return std::nullopt;
  }
  return run_stack<OnGpu>(input);
}
