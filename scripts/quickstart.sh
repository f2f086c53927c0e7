#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up what is missing, builds the examples and runs the first: prefix linear attention on tensors of the authors' own
# implementation, or with the arguments given (--tokens N --heads H).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
install_missing "${examples_packages[@]}"
cmake -S . -B build/quickstart -G Ninja -DCMAKE_BUILD_TYPE=Release -DJRT_BUILD_TESTS=OFF -DJRT_BUILD_BENCH=OFF -DJRT_CUDA=OFF >/dev/null
cmake --build build/quickstart --parallel 2 --target 01_quickstart >/dev/null
if [ $# -eq 0 ]; then
  set -- tests/data/pla_d16_dv64.safetensors
fi
build/quickstart/examples/01_quickstart "$@"
