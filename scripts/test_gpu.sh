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
  -DJRT_BUILD_BENCH=OFF -DJRT_WARNINGS_AS_ERRORS=ON >/dev/null
cmake --build "$build" --parallel "$(nproc)" --target cuda_tests >"$build/build.log" || { cat "$build/build.log"; exit 1; }
ctest --test-dir "$build" -R '^cuda/' --output-on-failure

# check TOOL TEST [OPTIONS OF THE TEST]
check() {
  local start=$SECONDS log="$build/$1.$2.log"
  # Rotated windows likewise (below): elements of a tile pass from warp to warp behind mbarriers. Other windows on Hopper's own
  # kernel are hopper_window's.
  if [ "$1.$2" = racecheck.mixer_window_attention ]; then export JRT_TEST_KERNELS=portable; fi
  if ! compute-sanitizer --tool "$1" --error-exitcode 1 "$build/tests/cuda_$2_test" "${@:3}" >"$log" 2>&1; then
    echo "== compute-sanitizer $1 $2: failed"
    tail -n 40 "$log"
    return 1
  fi
  echo "== compute-sanitizer $1 $2 ($((SECONDS - start)) s): $(grep SUMMARY "$log")"
}
export -f check
export build

checks() {
  # The longest first.
  for test in mixer_hybrid_attention fuzz_window_16bit hopper_window jrt_lm_generation fuzz_convolution fuzz_window fuzz_16bit \
    fuzz_wide_state fuzz_split_products jrt_lm_model jrt_lm_prompts jrt_lm_speculative jrt_lm_not_finite without_edges mixer_window_attention mixer_gated_convolution prefill decode laws \
    golden_linear_attention state_exchange state_operations policy_feature_map policy_padding policy_products backend hopper hopper_narrow warpgroup \
    golden_window_attention mixer_stack checkpoints jrt_lm_products jrt_lm_tiled_products backward_operators golden_linear_attention_backward \
    mixer_window_attention_backward mixer_gated_convolution_backward mixer_hybrid_attention_backward; do
    echo "memcheck $test"
  done
  # Not prefill, nor what contains it: racecheck does not see the order that mbarriers and the copy engine give, and takes
  # the zeroing of a tail in a stage that was in use before for a race with its last readers. The lengths in races_test have
  # a barrier of all threads between the two.
  for test in mixer_window_attention mixer_gated_convolution golden_window_attention decode golden_linear_attention \
    policy_padding races; do
    echo "racecheck $test"
  done
  echo "racecheck hopper_window --test-case=*without*rotation*"
  # The same is reported of cuBLAS's own kernels for few rows, which half takes. (racecheck's filter of kernels is no way
  # out: with those of cuBLAS left out it stops with an error of its own and the program with a wrong access.)
  echo "racecheck jrt_lm_products --test-case-exclude=*Half*"
  for test in mixer_hybrid_attention mixer_window_attention mixer_gated_convolution golden_window_attention jrt_lm_model jrt_lm_prompts jrt_lm_speculative decode \
    golden_linear_attention policy_padding races; do
    echo "initcheck $test"
  done
}
# Most of a check's time is the host's, so several at a time.
checks | xargs -P "$(($(nproc) < 8 ? $(nproc) : 8))" -L 1 bash -c 'check "$@" || exit 255' check
echo "All GPU checks passed."
