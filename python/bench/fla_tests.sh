#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs flash-linear-attention's own tests of the operators that jrt.fla takes over, on jrt: fla_tests.sh FOLDER [pytest options],
# where FOLDER is a checkout of https://github.com/fla-org/flash-linear-attention (of which tests/conftest.py and
# tests/ops/test_based.py, test_linear_attn.py are needed). Needs its package (flash-linear-attention or fla-core), pytest and a
# GPU; ends with what ran on jrt and what it left to fla.
set -eu
folder=$1
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
(cd "$folder" && python3 -m jrt.fla -m pytest -q -p no:cacheprovider --log-file="$log" --log-file-level=INFO \
  tests/ops/test_based.py tests/ops/test_linear_attn.py "$@") || status=$?
echo "Dispatched, and refused with a reason:"
grep -oE '\[FLA Backend\] .* -> jrt.*' "$log" | sort -u
exit "$status"
