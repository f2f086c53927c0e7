#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# On a machine with a GPU: builds the CUDA tests for it, runs them, and runs them again under compute-sanitizer (memory,
# races, uninitialised reads). `scripts/test_gpu.sh build/cuda` takes another build directory.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/cuda}
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
[ "$arch" = 90 ] && arch=90a
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CUDA_ARCHITECTURES="$arch" -DJRT_BUILD_EXAMPLES=OFF \
  -DJRT_BUILD_BENCH=OFF >/dev/null
cmake --build "$build" --parallel "$(nproc)" >"$build/build.log" || { cat "$build/build.log"; exit 1; }
ctest --test-dir "$build" -R '^cuda/' --output-on-failure

# sanitize TOOL TEST [OPTIONS OF THE TEST]
sanitize() {
  echo "== compute-sanitizer $1 $2"
  compute-sanitizer --tool "$1" --error-exitcode 1 "$build/tests/cuda_$2_test" "${@:3}" >"$build/$1.$2.log" 2>&1 ||
    { tail -n 40 "$build/$1.$2.log"; exit 1; }
  grep SUMMARY "$build/$1.$2.log"
}
for test in prefill decode laws golden state_exchange state_operations policy_feature_map policy_padding backend hopper \
  fuzz_16bit window_attention golden_window fuzz_window fuzz_window_16bit gated_convolution fuzz_convolution stack checkpoints \
  windowed_linear_attention jrt_lm_products jrt_lm_model jrt_lm_generation; do
  sanitize memcheck "$test"
done
# Not prefill, nor what contains it: racecheck does not see the order that mbarriers and the copy engine give, and takes the zeroing of a tail in a
# stage that was in use before for a race with its last readers. The lengths in races_test have a barrier of all threads
# between the two.
for test in decode golden policy_padding races window_attention golden_window gated_convolution; do
  sanitize racecheck "$test"
done
# The same is reported of cuBLAS's own kernels for few rows, which half takes.
sanitize racecheck jrt_lm_products "--test-case-exclude=*Half*"
for test in decode golden policy_padding races window_attention golden_window gated_convolution windowed_linear_attention \
  jrt_lm_model; do
  sanitize initcheck "$test"
done
echo "All GPU checks passed."
