#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The program from its command line: program_test.sh PROGRAM DATA_FOLDER README
set -euo pipefail
program=$1
data=$2
readme=$3
model=$data/jrt_tiny
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failed=0

# The authors' greedy tokens; the README shows command and output, which are run and compared here as they stand there.
expected="2 0 83 38 61 82 83 76 66 66 30 45
77 68 92 45 12 95 84 92 15 92 54 77"
command=$(grep 'jrt_lm tests/data/jrt_tiny ' "$readme")
shown=$(grep -A 4 'jrt_lm tests/data/jrt_tiny ' "$readme" | grep '^[0-9 ]*$' || true)
[ "$shown" = "$expected" ] || { echo "the README shows other tokens: $shown"; failed=1; }
for type in float32 float64; do
  printed=$(cd "$data/../.." && "$program" ${command#*jrt_lm/jrt_lm } --type "$type")
  [ "$printed" = "$expected" ] || { echo "wrong tokens ($type): $printed"; failed=1; }
done

# The same model as PyTorch writes it: under the authors' names, in shards, and with what is no tensor.
for form in published sharded; do
  cp -r "$data/torch/$form" "$folder/$form"
  cp "$model/config.json" "$folder/$form"
  printed=$("$program" "$folder/$form" --tokens-file "$data/jrt_tiny/prompts.txt" --generate 12)
  [ "$printed" = "$expected" ] || { echo "wrong tokens ($form): $printed"; failed=1; }
done

# A temperature of 0 is greedy, and a byte order mark before prompts is passed over.
{ printf '\xEF\xBB\xBF'; cat "$data/jrt_tiny/prompts.txt"; } >"$folder/marked"
printed=$("$program" "$model" --tokens-file "$folder/marked" --generate 12 --temperature 0 --top-p 0.9 --seed 5)
[ "$printed" = "$expected" ] || { echo "wrong tokens (temperature 0): $printed"; failed=1; }
"$program" --help | grep -q "0: the likeliest token" || { echo "--help does not say what a temperature of 0 is"; failed=1; }

# A long prompt on several ranks, read once and twice.
long=$(python3 -c 'print(*(i * i % 89 for i in range(1500)))')
for reads in 1 2; do
  of_one=$("$program" "$model" --tokens "$long" --query 3,4 --prefix 700 --read-twice $reads --generate 8 --type float64)
  for ranks in 2 3; do
    printed=$("$program" "$model" --tokens "$long" --query 3,4 --prefix 700 --read-twice $reads --generate 8 --type float64 --ranks $ranks)
    [ "$printed" = "$of_one" ] || { echo "wrong tokens ($ranks ranks): $printed"; failed=1; }
  done
done

# Speculation gives the same tokens, in fewer steps where the text repeats itself.
printed=$("$program" "$model" --tokens-file "$data/jrt_tiny/prompts.txt" --generate 12 --speculate 4)
[ "$printed" = "$expected" ] || { echo "wrong tokens (speculation): $printed"; failed=1; }
repeated=(--tokens "$(python3 -c 'print(*([5, 9, 7, 3, 11, 20, 1] * 200))')" --query 3,4 --prefix 700 --generate 60 --type float64)
of_one=$("$program" "$model" "${repeated[@]}")
for ranks in 1 2; do
  "$program" "$model" "${repeated[@]}" --ranks $ranks --speculate 6 --json |
    python3 -c '
import json, sys
out = json.load(sys.stdin)
assert " ".join(map(str, out["tokens"][0])) == sys.argv[1], out
assert out["speculate"] == 6 and 0 < out["accepted_tokens"] <= out["drafted_tokens"], out
assert out["decode_rounds"] == 59 - out["accepted_tokens"], out
assert out["decode_ms_per_round"] > out["decode_ms_per_token"] > 0, out' "$of_one" || failed=1
done
"$program" "$model" --measure 20 --batch 2 --repeats 1 --generate 3 --speculate 4 --json | python3 -c '
import json, sys
row = json.load(sys.stdin)["measurements"][0]
assert row["speculate"] == 4 and row["staged_step_ms"] > 0 and row["speculative_step_ms"] > 0, row' || failed=1
"$program" "$model" --measure 20 --repeats 1 --generate 3 --speculate 4 | grep -q "staged step of 4 tokens" ||
  { echo "no staged step is measured"; failed=1; }

# All that JSON has.
"$program" "$model" --tokens "1 2 3" --generate 3 --json | python3 -c '
import json, sys
out = json.load(sys.stdin)
assert len(out["tokens"]) == 1 and len(out["tokens"][0]) == 3, out
assert out["prompt_tokens"] == 3 and out["decode_rounds"] == 2, out
for key in ("prefill_ms", "prefill_tokens_per_s", "decode_ms_per_token", "decode_tokens_per_s", "state_bytes_per_sequence",
            "device_bytes", "parameters", "load_ms"):
    assert out[key] > 0, key' || failed=1
"$program" "$model" --measure 7,40 --batch 2 --repeats 1 --generate 3 --json | python3 -c '
import json, sys
rows = json.load(sys.stdin)["measurements"]
assert [row["tokens"] for row in rows] == [7, 40] and [row["prefix"] for row in rows] == [7, 16], rows
assert all(row["prefill_ms"] > 0 and row["decode_ms_per_token"] > 0 for row in rows), rows' || failed=1

# Text in and out, where the tokenizer is built: these characters are the first tokens of any byte-level vocabulary.
bpe=(--vocab "$data/bpe/vocab.json" --merges "$data/bpe/merges.txt")
has_tokenizer=yes
if { "$program" "$model" --tokens 1 --generate 0 "${bpe[@]}" 2>&1 || true; } | grep -q "needs PCRE2"; then
  has_tokenizer=
fi
if [ "$has_tokenizer" ]; then
  "$program" "$model" --text '!"#' --query-text '$%' --generate 6 "${bpe[@]}" --json | python3 -c '
import json, sys
out = json.load(sys.stdin)
assert out["prompt_tokens"] == 5, out
assert [ord(character) - ord("!") for character in out["text"][0]] == out["tokens"][0], out' || failed=1
  # A model with a larger vocabulary than the tokenizer: row 650 of its embeddings is twice row 2, the likeliest here.
  mkdir "$folder/wide"
  sed -e 's/"vocab_size": 97/"vocab_size": 700/' "$model/config.json" >"$folder/wide/config.json"
  python3 - "$model/model.safetensors" "$folder/wide/model.safetensors" <<'END'
import json, struct, sys
file = open(sys.argv[1], "rb").read()
size = struct.unpack("<Q", file[:8])[0]
header, data, offset = json.loads(file[8 : 8 + size]), b"", 0
for name, tensor in header.items():
    if name == "__metadata__":
        continue
    begin, end = tensor["data_offsets"]
    part = file[8 + size + begin : 8 + size + end]
    if name == "transformer.embeddings.word_embeddings.weight":
        row = struct.unpack("<64f", part[2 * 256 : 3 * 256])
        rows = [bytes(256)] * 600
        rows[650 - 104] = struct.pack("<64f", *(2 * x for x in row))
        part += b"".join(rows)
        tensor["shape"] = [704, 64]
    tensor["data_offsets"] = [len(data), len(data) + len(part)]
    data += part
text = json.dumps(header).encode()
open(sys.argv[2], "wb").write(struct.pack("<Q", len(text)) + text + data)
END
  prompt=$(head -n 1 "$data/jrt_tiny/prompts.txt")
  printed=$("$program" "$folder/wide" --tokens "$prompt" --generate 1 "${bpe[@]}")
  [ "$printed" = "$(printf '650\n<|650|>')" ] || { echo "a token that the tokenizer lacks: $printed"; failed=1; }
fi

# A long prefill says how far it is, unless it is told to be quiet.
seq 0 9999 | awk '{printf "%d ", $1 % 97}' >"$folder/long"
"$program" "$model" --tokens-file "$folder/long" --generate 0 2>"$folder/progress"
grep -q "prefill of 10000 tokens: 100 %" "$folder/progress" || { echo "no line of progress"; failed=1; }
[ -z "$("$program" "$model" --tokens-file "$folder/long" --generate 0 --quiet 2>&1)" ] || { echo "not quiet"; failed=1; }

# refused WORDS ARGUMENTS...: exit code 1, nothing printed, and one line on standard error that has the words.
refused() {
  local words=$1 code=0
  shift
  "$program" "$@" >"$folder/out" 2>"$folder/err" || code=$?
  if [ "$code" -ne 1 ] || [ -s "$folder/out" ] || [ "$(wc -l <"$folder/err")" -ne 1 ] || ! grep -qF -- "$words" "$folder/err"; then
    echo "not refused as it should be (exit code $code, wanted '$words'): $*"
    cat "$folder/err"
    failed=1
  fi
}
refused "neither a model's folder nor --random-weights" --tokens 1
refused "both a folder" "$model" --random-weights 360m --tokens 1
refused "the model '7b' is not known" --random-weights 7b --tokens 1
refused "there is no prompt" "$model"
refused "--tokens has 0 tokens" "$model" --tokens ""
refused "is token 300, but the embeddings have tokens from 0 to 103" "$model" --tokens 1,300
refused "is token -4, but the embeddings have tokens from 0 to 103" "$model" --tokens=-4
refused "--tokens has the value '1x'" "$model" --tokens 1x
refused "--tokens has the value '99999999999'" "$model" --tokens 99999999999
refused "'--nonsense' is not an option" "$model" --nonsense
refused "has no value, but needs one" "$model" --tokens
refused "--type is 'int8', but must be one of float64, float32, float16, bfloat16" "$model" --type int8
refused "--short-prompt is 'x', but must be one of shorten, left-pad, read-twice, iterative" "$model" --short-prompt x
refused "--generate is -1, but must be from 0" "$model" --tokens 1 --generate=-1
refused "--speculate is 1, but must be from 2 to 16" "$model" --tokens 1 --speculate 1
refused "--speculate is 17, but must be from 2 to 16" "$model" --tokens 1 --speculate 17
refused "--speculate is 4, but tokens are drawn" "$model" --tokens 1 --speculate 4 --top-k 5
refused "--speculate is 4, but tokens are drawn" "$model" --tokens 1 --temperature 0.7 --speculate 4
refused "top-p is 1.500000" "$model" --tokens 1 --top-p 1.5
refused "prompt 0, position 0, is token 220" "$model" --tokens 1 --short-prompt left-pad
refused "--text needs --vocab and --merges" "$model" --text hello
refused "'-h' is not an option" "$model" -hx
refused "both --query and --query-text" "$model" --tokens 1 --query 2 --query-text x
refused "--measure makes its own prompts" "$model" --tokens 1 --measure 5
refused "'repetitions' is 1000000000, but must be so few" "$model" --tokens 1,2,3 --read-twice 1000000000
refused "'iterative' for short prompts needs one that is shown once" "$model" --tokens 1 --read-twice 2 --short-prompt iterative
refused "--vocab and --merges belong together" "$model" --tokens 1 --vocab "$data/bpe/vocab.json"
refused "--query has 0 tokens" "$model" --tokens 1 --query ""
refused "--separator has 0 tokens" "$model" --tokens 1 --read-twice 2 --separator ""
refused "--query-text needs --vocab and --merges" "$model" --tokens 1 --query-text ""
refused "--vocab is empty" "$model" --tokens 1 --vocab "" --merges ""
for strategy in left-pad read-twice; do
  refused "a prompt of 3 tokens is to be padded to 1000000000 ('$strategy'), but padding reaches up to 1048576" \
    "$model" --tokens 1,2,3 --prefix 1000000000 --short-prompt "$strategy"
done
refused "a context is shown 100000000 times, but may be shown at most 1024 times" "$model" --tokens 1 --read-twice 100000000
refused "are 1125899906842624 tokens, but prompts are measured that have at most 2147483647" \
  "$model" --measure 1073741824 --batch 1048576
refused "the temperature is -1.000000, but must be at least 0" "$model" --tokens 1 --temperature=-1
refused "is a second model" "$model" "$model" --tokens 1
refused "$folder/nothing: cannot be opened" "$model" --tokens-file "$folder/nothing"
refused "$folder/config.json: cannot be opened" "$folder" --tokens 1
mkdir "$folder/config.json"
refused "$folder/config.json: is not a file" "$folder" --tokens 1
rmdir "$folder/config.json"

# Broken models.
cp "$model/config.json" "$folder"
refused "model.safetensors" "$folder" --tokens 1
head -c 1000000 "$model/model.safetensors" >"$folder/model.safetensors"
refused "$folder/model.safetensors" "$folder" --tokens 1
cp "$model/model.safetensors" "$folder"
sed -i 's/"n_layer": 6/"n_layer": 7/' "$folder/config.json"
refused "transformer.layers.6." "$folder" --tokens 1
sed -e 's/"n_inner": 128/"n_inner": 300/' "$model/config.json" >"$folder/config.json"
refused "[512, 64]" "$folder" --tokens 1
refused "[1024, 64]" "$folder" --tokens 1
# Files of PyTorch's: the older format, a program in place of a tensor, a part of a file, a pointer in place of one.
mkdir "$folder/torch"
cp "$model/config.json" "$folder/torch"
bin=$folder/torch/pytorch_model.bin
cp "$data/torch/legacy/pytorch_model.bin" "$bin"
refused "torch.save" "$folder/torch" --tokens 1
cp "$data/torch/hostile/pytorch_model.bin" "$bin"
refused "nothing was executed" "$folder/torch" --tokens 1
[ ! -e executed.txt ] || { echo "a checkpoint was executed"; failed=1; }
head -c 100000 "$data/torch/published/pytorch_model.bin" >"$bin"
refused "$bin" "$folder/torch" --tokens 1
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 800000000\n' 1 >"$bin"
refused "$bin: is a Git LFS pointer of" "$folder/torch" --tokens 1
# A NaN in the embedding of token 96, which is nobody's: the last row of the table of 104.
python3 - "$model/model.safetensors" "$folder/model.safetensors" <<'END'
import json, struct, sys
file = bytearray(open(sys.argv[1], "rb").read())
size = struct.unpack("<Q", file[:8])[0]
begin = json.loads(file[8 : 8 + size])["transformer.embeddings.word_embeddings.weight"]["data_offsets"][0]
struct.pack_into("<f", file, 8 + size + begin + 4 * (96 * 64 + 9), float("nan"))
open(sys.argv[2], "wb").write(file)
END
cp "$model/config.json" "$folder"
for way in "--top-k 1" "--top-k 0" "--measure 7"; do
  # shellcheck disable=SC2086
  refused "sequence 0, step 0 (the prompt's last token): logits are NaN or infinite" \
    "$folder" $([ "$way" = "--measure 7" ] || echo --tokens 1,2,3) $way
done
cp "$model/model.safetensors" "$folder"

# A tensor that the model has no use for (its bias is switched off), and one with numbers of another kind.
sed -e 's/"use_bias": true/"use_bias": false/' "$model/config.json" >"$folder/config.json"
refused "mixer.in_proj.bias' is not part of the model" "$folder" --tokens 1
cp "$model/config.json" "$folder"
sed -e '0,/"dtype":"F32"/s//"dtype":"I32"/' "$model/model.safetensors" >"$folder/model.safetensors"
refused "has the dtype I32, but weights are F64, F32, F16 or BF16" "$folder" --tokens 1
cp "$model/model.safetensors" "$folder"
# Numbers that only Python writes, under a key that nobody reads and under one that counts; a key of another kind of model.
sed -e 's/"n_embd": 64/"n_embd": 64, "lr": NaN, "clip": -Infinity/' "$model/config.json" >"$folder/config.json"
[ "$("$program" "$folder" --tokens 1 --generate 2)" = "$("$program" "$model" --tokens 1 --generate 2)" ] ||
  { echo "numbers of Python's change tokens"; failed=1; }
sed -e 's/"layer_norm_epsilon": 1e-05/"layer_norm_epsilon": NaN/' "$model/config.json" >"$folder/config.json"
refused "$folder/config.json: 'layer_norm_epsilon' is NaN, but must be a positive number" "$folder" --tokens 1
sed -e 's/"n_embd": 64/"n_embd": 64, "mup_output_multiplier": 0.5/' "$model/config.json" >"$folder/config.json"
refused "$folder/config.json: 'mup_output_multiplier' is 0.5, but only 1 is supported" "$folder" --tokens 1
sed -e 's/BaseConv/Hyena/' "$model/config.json" >"$folder/config.json"
refused "Hyena', but known mixers are" "$folder" --tokens 1

if [ "$has_tokenizer" ]; then
  refused "--text has 0 tokens, but a prompt needs at least 1" "$model" --text "" "${bpe[@]}"
  refused "--query-text has 0 tokens, but a prompt needs at least 1" "$model" --tokens 1 --query-text "" "${bpe[@]}"
fi

[ "$failed" -eq 0 ] && echo "all as it should be"
exit "$failed"
