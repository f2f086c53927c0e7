#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Merges what cuda_bench and attention_peers.py measured into one table and one plot.

    compare.py cuda_bench.json peers.json --table out.md --plot out.svg

Needs nothing but Python. Ratios are FlashAttention-2's time over ours; "of floor" is the time that the bytes which must
move take at the bandwidth of a copy, over ours. The plot shows time and memory: what is kept of all sequences to decode
what follows them (states; or keys and values) and what the call allocates on the way (workspace), its inputs and outputs
not counted.
"""

import argparse
import json
import re

import plot

TRITON = ("triton_parallel_based", "triton_fused_chunk_based")
OPERATORS = {"jrt causal": "causal", "jrt prefix": "prefix"}
NAME = re.compile(r"prefill/(causal|prefix)/bfloat16/dv64/B:(\d+)/N:(\d+)(?:/iterations:\d+)?/manual_time$")


def read_jrt(path):
    """{(operator, B, N): {"ms", "floor_ms", "bytes"}}, and the context of the run."""
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    times = {}
    for run in content["benchmarks"]:
        match = NAME.match(run["name"])
        if match is None or "median_us" not in run or run.get("error_occurred"):
            continue
        milliseconds = run["median_us"] * 1e-3
        key = (match[1], int(match[2]), int(match[3]))
        if key[1] == 64 or key[2] % 2:
            continue  # shapes that are there for comparison among our own
        times[key] = {"ms": milliseconds, "floor_ms": run["floor"] * milliseconds}
        if "state_bytes" in run:
            times[key]["bytes"] = run["state_bytes"] + run["workspace_bytes"]
    return times, content["context"]


def read_peers(path):
    """{(name, B, N): ms}, of the rows that have a time, Triton's the better of its two; the same of bytes; and the run."""
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    times = {}
    memory = {}
    for row in content["results"]:
        if row.get("median_ms") is not None:
            name = "Triton" if row["name"] in TRITON else row["name"]
            key = (name, row["B"], row["N"])
            times[key] = min(times.get(key, row["median_ms"]), row["median_ms"])
            if "cache_bytes" in row:
                memory[key] = row["cache_bytes"] + row["peak_bytes"]
    return times, memory, content


def three_digits(milliseconds):
    if milliseconds is None:
        return "–"
    decimals = 4 if milliseconds < 0.1 else 3 if milliseconds < 1 else 2 if milliseconds < 10 else 1
    return f"{milliseconds:.{decimals}f}"


def table(jrt, peers):
    columns = ["B", "N", "FA2", "cuDNN", "Triton"]
    for operator in OPERATORS:
        columns += [operator, "× FA2", "of floor"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    shapes = sorted({key[1:] for key in (*jrt, *peers)}, key=lambda shape: (-shape[0], shape[1]))
    for batch, tokens in shapes:
        cells = [str(batch), str(tokens)]
        cells += [three_digits(peers.get((name, batch, tokens))) for name in ("FA2", "cuDNN", "Triton")]
        for operator in OPERATORS.values():
            ours = jrt.get((operator, batch, tokens))
            flash = peers.get(("FA2", batch, tokens))
            if ours is None:
                cells += ["–"] * 3
                continue
            ratio = flash / ours["ms"] if flash is not None else None
            cells += [three_digits(ours["ms"]), "–" if ratio is None else f"{ratio:.{0 if ratio >= 10 else 1}f}",
                      f"{ours['floor_ms'] / ours['ms']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def title(batch):
    sequences = "1 sequence" if batch == 1 else f"{batch} sequences"
    return f"{sequences}, 16 heads"


def points(values, name, batch):
    return {n: value for (key, b, n), value in values.items() if (key, b) == (name, batch)}


def time_panel(jrt, peers, batch):
    lines = [plot.Line(name, points(peers, name, batch)) for name in ("FA2", "cuDNN", "Triton")]
    for name, operator in OPERATORS.items():
        ours = points(jrt, operator, batch)
        lines.append(plot.Line(name, {n: time["ms"] for n, time in ours.items()}))
        if operator == "prefix":
            floor = {n: time["floor_ms"] for n, time in ours.items()}
            lines.append(plot.Line("bytes of jrt prefix at copy bandwidth", floor, dashed=True))
    return plot.Panel(title(batch), lines)


def memory_panel(jrt, memory, batch):
    # Both attentions keep the same, and so do both operators: the first line of each pair shows under the second.
    lines = [plot.Line(name, points(memory, name, batch), wide=name == "FA2") for name in ("FA2", "cuDNN")]
    for name, operator in OPERATORS.items():
        ours = {n: row["bytes"] for n, row in points(jrt, operator, batch).items() if "bytes" in row}
        lines.append(plot.Line(name, ours, wide=operator == "causal"))
    return plot.Panel(title(batch), lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cuda_bench", help="JSON of cuda_bench --benchmark_out")
    parser.add_argument("peers", help="JSON of attention_peers.py")
    parser.add_argument("--table", required=True)
    parser.add_argument("--plot", required=True)
    arguments = parser.parse_args()
    jrt, context = read_jrt(arguments.cuda_bench)
    peers, memory, peers_run = read_peers(arguments.peers)
    if not jrt:
        raise SystemExit(f"{arguments.cuda_bench} has no times of prefills")
    gpu = context.get("GPU", "unknown GPU")
    if gpu != peers_run["GPU"]:
        raise SystemExit(f"not comparable: measured on '{gpu}' and on '{peers_run['GPU']}'")
    copy = float(context["copy_GB/s"])
    with open(arguments.table, "w", encoding="utf-8") as file:
        file.write(f"{gpu}, CUDA {context.get('CUDA', '?')}, PyTorch {peers_run['torch']}, copy {copy:.0f} GB/s. "
                   f"Milliseconds, medians; 16 heads, bfloat16.\n\n{table(jrt, peers)}\n")
    rows = [plot.Row("milliseconds", [time_panel(jrt, peers, batch) for batch in (1, 16)])]
    if memory and any("bytes" in row for row in jrt.values()):
        rows.append(plot.Row("bytes kept and allocated", [memory_panel(jrt, memory, batch) for batch in (1, 16)]))
    with open(arguments.plot, "w", encoding="utf-8") as file:
        file.write(plot.svg(f"Prefill of N tokens on {gpu}", "tokens N", rows))


if __name__ == "__main__":
    main()
