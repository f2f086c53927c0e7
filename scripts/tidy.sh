#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# clang-tidy over the headers (through programs that use them all), the examples and the benchmarks.
set -euo pipefail
cd "$(dirname "$0")/.."
cmake --preset clang >/dev/null
# The model's headers come with one of its compiled combinations and its model, which the build writes.
printf '%s\n' examples/01_quickstart.cpp examples/02_serving.cpp tests/state_exchange_test.cpp examples/support/*.cpp \
  $(ls examples/jrt_lm/*.cpp | grep -v cublas) build/clang/examples/jrt_lm/cpu_float32_16_16_4_3.cpp \
  build/clang/examples/jrt_lm/cpu_float32.cpp |
  xargs -P 2 -n 1 clang-tidy --quiet -p build/clang
