#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Times jrt and its peers on this machine's GPU, one after the other, and puts the results side by side. Needs a built
# cuda_bench (docs/performance.md) and a python3 with PyTorch; changes no setting of the device.
#
#   bench/peers/run.sh [build folder] [output folder]     # build/cuda, and results in it, unless given
#
# Writes cuda_bench.json, peers.json, comparison.md and comparison.svg. Fails if a result of cuda_bench was wrong.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=${1:-$here/../../build/cuda}
output=${2:-$build/results}
mkdir -p "$output"
export PYTHONDONTWRITEBYTECODE=1  # leaves the source tree as it is
status=0
"$build/bench/cuda_bench" --benchmark_out="$output/cuda_bench.json" --benchmark_out_format=json || status=$?
[ -s "$output/cuda_bench.json" ] || { echo "cuda_bench wrote no results"; exit 1; }
python3 "$here/attention_peers.py" --out "$output/peers.json"
python3 "$here/compare.py" "$output/cuda_bench.json" "$output/peers.json" --table "$output/comparison.md" \
  --plot "$output/comparison.svg"
cat "$output/comparison.md"
exit "$status"
