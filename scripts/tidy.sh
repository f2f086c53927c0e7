#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# clang-tidy over the headers (through programs that use them all), the examples and the benchmarks.
set -euo pipefail
cd "$(dirname "$0")/.."
cmake --preset clang >/dev/null
# Not of Eigen's product: the analyzer follows it into Eigen's own memory and warns of that.
# The model's headers come with files that the build writes: a model, and its mixers.
printf '%s\n' examples/01_quickstart.cpp examples/02_serving.cpp examples/07_context_parallel.cpp \
  tests/state_exchange_test.cpp examples/support/*.cpp $(ls examples/jrt_lm/*.cpp | grep -v 'cublas\|eigen_product') build/clang/examples/jrt_lm/cpu_float32*.cpp |
  xargs -P 2 -n 1 clang-tidy --quiet -p build/clang
