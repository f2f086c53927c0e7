#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up what is missing, builds the language model for the CPU and runs it: the authors' small JRT-RNN, whose tokens the
# README shows, or with the arguments given.
set -euo pipefail
caller=$PWD
cd "$(dirname "$0")/.."
source scripts/setup.sh
install_missing "${examples_packages[@]}"
cmake -S . -B build/quickstart -G Ninja -DCMAKE_BUILD_TYPE=Release -DJRT_BUILD_TESTS=OFF -DJRT_BUILD_BENCH=OFF -DJRT_CUDA=OFF >/dev/null
cmake --build build/quickstart --parallel 2 --target jrt_lm >/dev/null
if [ $# -eq 0 ]; then
  set -- tests/data/jrt_tiny --tokens-file tests/data/jrt_tiny/prompts.txt --generate 12
  caller=$PWD
fi
program=$PWD/build/quickstart/examples/jrt_lm/jrt_lm
cd "$caller"  # paths among the arguments are the caller's
"$program" "$@"
