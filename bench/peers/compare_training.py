#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Merges what cuda_bench (forward_backward/) and training_peers.py measured into one table and one plot, as compare.py does
for prefill.

    compare_training.py cuda_bench.json training_peers.json --table out.md --plot out.svg

Needs nothing but Python. Times are of a forward and a backward pass; memory is what both hold beside their inputs: outputs,
what the backward pass needs of them, gradients, workspace.
"""

import argparse
import json
import re

import plot
from compare import points, three_digits, title

NAME = re.compile(r"forward_backward/prefix/bfloat16/dv64/B:(\d+)/N:(\d+)(?:/iterations:\d+)?/manual_time$")
PEERS = ("FA2", "cuDNN")


def read_jrt(path):
    """{("jrt prefix", B, N): {"ms", "floor_ms", "bytes"}}, and the context of the run."""
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    rows = {}
    for run in content["benchmarks"]:
        match = NAME.match(run["name"])
        if match is not None and "median_us" in run and not run.get("error_occurred"):
            milliseconds = run["median_us"] * 1e-3
            rows["jrt prefix", int(match[1]), int(match[2])] = {
                "ms": milliseconds, "floor_ms": run["floor"] * milliseconds, "bytes": run["step_bytes"]}
    return rows, content["context"]


def read_peers(path):
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    rows = {(row["name"], row["B"], row["N"]): {"ms": row["median_ms"], "bytes": row["peak_bytes"]}
            for row in content["results"] if row.get("median_ms") is not None and row["name"] in PEERS}
    return rows, content


def table(rows):
    lines = ["| B | N | FA2 | cuDNN | prefix | × FA2 | of floor |", "|---" * 7 + "|"]
    for batch, tokens in sorted({key[1:] for key in rows}, key=lambda shape: (-shape[0], shape[1])):
        ours = rows.get(("jrt prefix", batch, tokens))
        peers = [rows.get((name, batch, tokens), {}).get("ms") for name in PEERS]
        if ours is not None:
            ratio = f"{peers[0] / ours['ms']:.1f}" if peers[0] is not None else "–"
            cells = [str(batch), str(tokens), *map(three_digits, peers), three_digits(ours["ms"]), ratio,
                     f"{ours['floor_ms'] / ours['ms']:.2f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def panel(rows, batch, what):
    def line(name, of, **style):
        return plot.Line(name, {n: row[of] for n, row in points(rows, name, batch).items()}, **style)

    lines = [line(name, what, wide=what == "bytes" and name == "FA2") for name in (*PEERS, "jrt prefix")]
    if what == "ms":
        floor = plot.Line("bytes of jrt prefix at copy bandwidth", line("jrt prefix", "floor_ms").points, dashed=True)
        lines.append(floor)
    return plot.Panel(title(batch), lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cuda_bench", help="JSON of cuda_bench --benchmark_out")
    parser.add_argument("peers", help="JSON of training_peers.py")
    parser.add_argument("--table", required=True)
    parser.add_argument("--plot", required=True)
    arguments = parser.parse_args()
    jrt, context = read_jrt(arguments.cuda_bench)
    peers, peers_run = read_peers(arguments.peers)
    if not jrt:
        raise SystemExit(f"{arguments.cuda_bench} has no times of forward_backward/")
    gpu = context.get("GPU", "unknown GPU")
    if gpu != peers_run["GPU"]:
        raise SystemExit(f"not comparable: measured on '{gpu}' and on '{peers_run['GPU']}'")
    rows = {**jrt, **peers}
    with open(arguments.table, "w", encoding="utf-8") as file:
        file.write(f"{gpu}, CUDA {context.get('CUDA', '?')}, PyTorch {peers_run['torch']}, copy "
                   f"{float(context['copy_GB/s']):.0f} GB/s. Milliseconds, medians; 16 heads, bfloat16.\n\n{table(rows)}\n")
    with open(arguments.plot, "w", encoding="utf-8") as file:
        file.write(plot.svg(f"Forward and backward pass over N tokens on {gpu}", "tokens N",
                            [plot.Row("milliseconds", [panel(rows, batch, "ms") for batch in (1, 16)]),
                             plot.Row("bytes beside the inputs", [panel(rows, batch, "bytes") for batch in (1, 16)])]))


if __name__ == "__main__":
    main()
