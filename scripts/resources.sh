#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Registers, stack and spills of every CUDA kernel of the benchmark, compiled for sm_90a, and the compiler's remarks that
# products of the matrix unit were serialised. Fails where a tuned kernel (bfloat16 or half on Hopper's own kernels) has spills
# or such a remark; the backward pass has a few of both, which docs/hopper-backward-kernel.md explains. Needs no GPU. `scripts/resources.sh build/resources` takes another build directory.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/resources}
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CUDA_ARCHITECTURES=90a -DCMAKE_CUDA_FLAGS="-Xptxas -v" \
  -DJRT_BUILD_TESTS=OFF -DJRT_BUILD_EXAMPLES=OFF -DJRT_WARNINGS_AS_ERRORS=ON >/dev/null
cmake --build "$build" --target clean
cmake --build "$build" --target cuda_bench --parallel 2 >"$build/ptxas.log" 2>&1 || { tail -n 40 "$build/ptxas.log"; exit 1; }
c++filt <"$build/ptxas.log" | awk '
  function short_name(text) {
    sub(/^.*entry function ./, "", text); sub(/. for .sm_.*$/, "", text)
    sub(/^void /, "", text); gsub(/jrt::detail::cuda::|jrt::bench::|jrt::|\(anonymous namespace\)::|\(int\)/, "", text); sub(/\(.*\)$/, "", text)
    return text
  }
  /Compiling entry function/ { kernel = short_name($0) }
  /bytes stack frame/ { stack = $1; stores = $5; loads = $9 }
  /Used [0-9]+ registers/ {
    match($0, /Used [0-9]+/)
    registers = substr($0, RSTART + 5, RLENGTH - 5)
    printf "%4d registers %5d stack %5d spilled %5d restored  %s\n", registers, stack, stores, loads, kernel
    if (kernel ~ /_sm90/ && kernel !~ /gradients_sm90/ && stores + loads > 0) { bad = bad "\n  spills: " kernel }
  }
  /\(C75[0-9][0-9]\)/ { print; if ($0 ~ /serialized/ && $0 ~ /_sm90/ && $0 !~ /gradients_sm90/) { bad = bad "\n  " $0 } }
  END { if (bad != "") { print "Tuned kernels with spills or serialised products:" bad; exit 1 } }
' | sort -u | tee "$build/resources.txt"
