#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Merges the times of cuda_bench and attention_peers.py into one table and one plot.

    compare.py cuda_bench.json peers.json --table out.md --plot out.svg

Needs nothing but Python. Ratios are FlashAttention-2's time over ours; "of floor" is the time that the bytes which must
move take at the bandwidth of a copy, over ours.
"""

import argparse
import json
import re

import plot

TRITON = ("triton_parallel_based", "triton_fused_chunk_based")
OPERATORS = {"jrt causal": "causal", "jrt prefix": "prefix"}
NAME = re.compile(r"prefill/(causal|prefix)/bfloat16/dv64/B:(\d+)/N:(\d+)(?:/iterations:\d+)?/manual_time$")


def read_jrt(path):
    """{(operator, B, N): {"ms", "floor_ms"}}, and the context of the run."""
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
    return times, content["context"]


def read_peers(path):
    """{(name, B, N): ms}, of the rows that have a time; Triton's is the better of its two."""
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    times = {}
    for row in content["results"]:
        if row.get("median_ms") is not None:
            name = "Triton" if row["name"] in TRITON else row["name"]
            key = (name, row["B"], row["N"])
            times[key] = min(times.get(key, row["median_ms"]), row["median_ms"])
    return times, content


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


def panel(jrt, peers, batch):
    lines = []
    for name in ("FA2", "cuDNN", "Triton"):
        lines.append(plot.Line(name, {n: ms for (peer, b, n), ms in peers.items() if (peer, b) == (name, batch)}))
    for name, operator in OPERATORS.items():
        ours = {n: time for (kind, b, n), time in jrt.items() if (kind, b) == (operator, batch)}
        lines.append(plot.Line(name, {n: time["ms"] for n, time in ours.items()}))
        if operator == "prefix":
            floor = {n: time["floor_ms"] for n, time in ours.items()}
            lines.append(plot.Line("bytes of jrt prefix at copy bandwidth", floor, dashed=True))
    sequences = "1 sequence" if batch == 1 else f"{batch} sequences"
    return plot.Panel(f"{sequences}, 16 heads", lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cuda_bench", help="JSON of cuda_bench --benchmark_out")
    parser.add_argument("peers", help="JSON of attention_peers.py")
    parser.add_argument("--table", required=True)
    parser.add_argument("--plot", required=True)
    arguments = parser.parse_args()
    jrt, context = read_jrt(arguments.cuda_bench)
    peers, peers_run = read_peers(arguments.peers)
    if not jrt:
        raise SystemExit(f"{arguments.cuda_bench} has no times of prefills")
    gpu = context.get("GPU", "unknown GPU")
    if gpu != peers_run["GPU"]:
        raise SystemExit(f"not comparable: measured on '{gpu}' and on '{peers_run['GPU']}'")
    copy = float(context["copy_GB/s"])
    with open(arguments.table, "w", encoding="utf-8") as file:
        file.write(f"{gpu}, CUDA {context.get('CUDA', '?')}, PyTorch {peers_run['torch']}, copy {copy:.0f} GB/s. "
                   f"Milliseconds, medians; 16 heads, bfloat16.\n\n{table(jrt, peers)}\n")
    with open(arguments.plot, "w", encoding="utf-8") as file:
        panels = [panel(jrt, peers, batch) for batch in (1, 16)]
        file.write(plot.svg(f"Prefill of N tokens on {gpu}", "tokens N", "milliseconds", panels))


if __name__ == "__main__":
    main()
