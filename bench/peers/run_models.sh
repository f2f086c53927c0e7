#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Times whole language models on this machine's GPU: jrt_lm (prefix of half the prompt; and causal, every prompt read twice)
# and the same model with full attention, and puts the results side by side. Needs a built jrt_lm and a python3 with
# PyTorch; changes no setting of the device.
#
#   bench/peers/run_models.sh BUILD_FOLDER OUT_FOLDER [seconds]   # after which a model's peer begins no further row
#
# Device time may be scarce, so parts can be chosen; the comparison takes all results that are in the folder by then:
#
#   MODELS="360m 1.3b" BATCHES="16 1" TOKENS=2048,8192,32768,131072 PARTS="jrt peers" STEPS=64 REPEATS=5 SECONDS_PER_ROW=20
#
# Writes jrt_lm_*.json, full_attention_*.json and models.md. Fails if jrt_lm or a peer did; the others still run.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 BUILD_FOLDER OUT_FOLDER [seconds]"; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
build=$1
output=$2
limit=${3:-inf}
models=${MODELS:-360m 1.3b}
batches=${BATCHES:-16 1}
tokens=${TOKENS:-2048,8192,32768,131072}
repeats=${REPEATS:-5}
parts=${PARTS:-jrt peers}
steps=${STEPS:-64}
mkdir -p "$output"
export PYTHONDONTWRITEBYTECODE=1  # leaves the source tree as it is
status=0

# Runs a command whose output becomes a file, if it succeeds.
into() {
  local file=$1
  shift
  echo "$*"
  if "$@" > "$file.part"; then
    mv "$file.part" "$file"
  else
    status=1
    echo "failed: $*"
    cat "$file.part"
    rm "$file.part"
  fi
}

for part in $parts; do
  for model in $models; do
    case $part in
      jrt)
        for batch in $batches; do
          measure=("$build/examples/jrt_lm/jrt_lm" --random-weights "$model" --device cuda --type bfloat16
                   --measure "$tokens" --batch "$batch" --generate "$steps" --repeats "$repeats" --json)
          into "$output/jrt_lm_${model}_b${batch}.json" "${measure[@]}" --prefix half
          into "$output/jrt_lm_${model}_b${batch}_twice.json" "${measure[@]}" --prefix 0 --read-twice 2
        done
        ;;
      peers)
        python3 "$here/full_attention_model.py" --model "$model" --batch "${batches// /,}" --tokens "$tokens" \
          --steps "$steps" --time-limit "$limit" --max-seconds-per-row "${SECONDS_PER_ROW:-20}" \
          --out "$output/full_attention_$model.json" || status=1
        ;;
      *)
        echo "not a part: $part"
        exit 2
        ;;
    esac
  done
done

shopt -s nullglob
files=("$output"/jrt_lm_*.json "$output"/full_attention_*.json)
[ ${#files[@]} -gt 0 ] || { echo "no results"; exit 1; }
python3 "$here/compare_models.py" --out "$output/models.md" "${files[@]}"
cat "$output/models.md"
exit "$status"
