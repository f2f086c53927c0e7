#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up what is missing and runs all checks: the Python package, format, clang-tidy, tests with g++ and clang++, tests under sanitizers
# (addresses and undefined behaviour; threads).
# Where nvcc is, the CUDA backend and its tests are built with the g++ tests; without a device they say that they are skipped.
# `scripts/test.sh quick` runs the g++ tests and those of the Python package alone.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
install_missing "${examples_packages[@]}" "${tests_packages[@]}"
install_missing $(sanitizer_runtime)

# Formatting and lint differ between versions of the tools; the project's is 14 (Debian 12).
is_version_14() {
  "$1" --version | grep -q "version 14\." || { echo "skipped: $1 is not version 14"; return 1; }
}

run_preset() { # NAME [OPTION…]
  echo "== $1: build and test"
  cmake --preset "$@" >/dev/null
  cmake --build --preset "$1" >"build/$1/build.log" || { cat "build/$1/build.log"; exit 1; }
  ctest --preset "$1" --output-log "build/$1/ctest.log" --quiet || { cat "build/$1/ctest.log"; exit 1; }
  tail -n 4 "build/$1/ctest.log"
}

# The Python package as it is installed, from NumPy; its tests of PyTorch need PyTorch, and say so.
check_python() {
  echo "== Python package"
  local python=build/python/bin/python
  [ -x "$python" ] || python3 -m venv build/python
  "$python" -m pip install -q --disable-pip-version-check "setuptools>=61" wheel numpy pytest "apache-tvm-ffi>=0.1.10,<0.2" ||
    { echo "skipped: pip cannot reach the packages that it needs"; return 0; }
  "$python" -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps .
  JRT_CACHE_DIR="$PWD/build/python/cache" "$python" -m pytest -q -rs -p no:cacheprovider python/tests
}

# Without a GPU all that CUDA programs can do is compile.
compile_only=OFF
[ -e /dev/nvidiactl ] || compile_only=ON
run_preset release "-DJRT_CUDA_COMPILE_ONLY=$compile_only"
check_python
if [ "${1:-}" != quick ]; then
  echo "== format"
  ! is_version_14 clang-format || git ls-files '*.hpp' '*.cpp' '*.cuh' '*.cu' | xargs clang-format --dry-run --Werror
  echo "== clang-tidy"
  ! is_version_14 clang-tidy || scripts/tidy.sh
  run_preset clang
  run_preset asan
  run_preset tsan
fi
echo "All checks passed."
