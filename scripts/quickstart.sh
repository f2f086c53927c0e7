#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up what is missing, builds the language model for the CPU and runs it: the authors' small JRT-RNN, whose tokens the
# README shows, or with the arguments given. Tokens go to standard output, all else to standard error.
set -euo pipefail
caller=$PWD
cd "$(dirname "$0")/.."
source scripts/setup.sh
install_missing "${examples_packages[@]}" >&2
options=(-DCMAKE_BUILD_TYPE=Release -DJRT_BUILD_TESTS=OFF -DJRT_BUILD_BENCH=OFF -DJRT_CUDA=OFF)
if [ $# -eq 0 ]; then
  # Only the kernels of the small model, which takes no time at all, so that the compiler's is what counts: it does not
  # optimise and reads every header once for each target. A folder of its own, so that neither build undoes the other.
  build=build/quickstart
  options+=(-DJRT_LM_SHAPES=16,16,4,3 -DJRT_LM_CPU_TYPES=float32 -DCMAKE_CXX_FLAGS_RELEASE=-O0 -DCMAKE_UNITY_BUILD=ON
    -DCMAKE_UNITY_BUILD_BATCH_SIZE=0)
  set -- tests/data/jrt_tiny --tokens-file tests/data/jrt_tiny/prompts.txt --generate 12
  caller=$PWD
  minutes="half a minute"
  first=1
else
  build=build/quickstart-models
  minutes="some minutes"
fi
echo "building jrt_lm in $build: $minutes the first time" >&2
mkdir -p build
cmake -S . -B "$build" -G Ninja "${options[@]}" >"$build.log" 2>&1 || { cat "$build.log" >&2; exit 1; }
cmake --build "$build" --parallel 2 --target jrt_lm >&2 || { echo "jrt_lm could not be built: the compiler's words are above" >&2; exit 1; }
program=$PWD/$build/examples/jrt_lm/jrt_lm
cd "$caller"  # paths among the arguments are the caller's
"$program" "$@"
if [ -n "${first:-}" ]; then
  cat >&2 <<NEXT
These are the tokens with which the authors' small model goes on from two prompts. To try next:
  scripts/quickstart.sh FOLDER --tokens 1,2,3          a published model: config.json and pytorch_model.bin or *.safetensors
  scripts/quickstart.sh --random-weights 360m --measure 512    how fast the published layout is on this machine
  scripts/quickstart.sh --help
NEXT
fi
