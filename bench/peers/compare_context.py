#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/distributed.md from the results of context_bench and context_parallel_softmax.py.

    bench/peers/compare_context.py weak.json strong.json [softmax.json]          # prints them
    bench/peers/compare_context.py … --write docs/distributed.md                 # puts the first between its marks

Then the paper model of many GPUs, with the measured latency and bandwidth of a host, and those between hosts assumed.
"""

import argparse
import json
import math
import re
import sys

GATHERED = 2 * 16 * (153 * 65 + 7) // 8 * 8 * 4  # two states of 16 heads, float32
HALO = 129 * 16 * 128 * 2
BETWEEN_HOSTS = (5e-6, 50e9)  # seconds a hop, bytes a second: assumed


def rows_of(files):
    rows, links, softmax, devices = [], [], [], []
    for name in files:
        with open(name) as file:
            content = json.load(file)
        devices.append(content["device"])
        for row in content["rows"]:
            (links if "link" in row else softmax if "way" in row else rows).append(row)
    return rows, links, softmax, sorted(set(devices))


def mixers_table(rows):
    lines = ["| tokens | mixer | GPUs | time, ms | of one GPU | in order, ms | exchange alone, ms | hidden | sent by each, KB |",
             "|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        weak = row["scaling"] == "weak"
        tokens = f"{row['tokens']} a GPU" if weak else f"{row['tokens']} in all"
        of_one = f"{row['of_one']:.2f} of its time" if weak else f"{row['of_one']:.2f} times faster"
        if row["gpus"] == 1:
            lines.append(f"| {tokens} | {row['mixer']} | 1 | {row['ms']:.3f} | | | | | |")
        else:
            lines.append(f"| {tokens} | {row['mixer']} | {row['gpus']} | {row['ms']:.3f} | {of_one} | {row['in_order_ms']:.3f} | "
                         f"{row['exchange_ms']:.3f} | {100 * row['hidden']:.0f} % | {row['sent_bytes'] / 1e3:.1f} |")
    return lines


def softmax_table(rows):
    lines = ["| softmax attention, one layer | tokens | GPUs | ms | received by each, MB |", "|---|---|---|---|---|"]
    lines += [f"| {row['way']} | {row['tokens']} | {row['gpus']} | {row['ms']:.2f} | {row['received_bytes'] / 1e6:.1f} |"
              for row in rows]
    return lines if rows else []


def latency_and_bandwidth(links):
    """Of a hop, and of a GPU's link: shortest and longest all-gather over the most GPUs."""
    gpus = max(link["gpus"] for link in links)
    measured = sorted((link["sent_bytes"], link["ms"] / 1e3) for link in links if link["gpus"] == gpus)
    bytes_sent, seconds = measured[-1]
    return gpus, measured[0][1] / (gpus - 1), bytes_sent * (gpus - 1) / seconds


def model_table(latency, bandwidth):
    lines = ["| GPUs | received, a prefix layer | all-gather | doubling | 5 prefix layers, the better | 5 windows, 16 convolutions |",
             "|---|---|---|---|---|---|"]
    for gpus in (2, 4, 8, 64, 1024):
        hop, rate = (latency, bandwidth) if gpus <= 8 else BETWEEN_HOSTS
        received = (gpus - 1) * GATHERED
        gather = hop * (gpus - 1) + received / rate
        doubling = math.ceil(math.log2(gpus)) * (4 * hop + GATHERED / rate)
        halos = 5 * (hop + HALO / rate) + 16 * hop
        lines.append(f"| {gpus} | {received / 1e6:.1f} MB | {gather * 1e6:.0f} µs | {doubling * 1e6:.0f} µs | "
                     f"{5e3 * min(gather, doubling):.2f} ms | {halos * 1e3:.2f} ms |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--write", metavar="DOCUMENT")
    options = parser.parse_args()
    rows, links, softmax, devices = rows_of(options.files)
    measured = [", ".join(devices) + ":", ""] + mixers_table(rows) + [""] + softmax_table(softmax)
    print("\n".join(measured))
    if links:
        gpus, latency, bandwidth = latency_and_bandwidth(links)
        print(f"\nall-gather over {gpus} GPUs: {latency * 1e6:.1f} µs a hop, {bandwidth / 1e9:.0f} GB/s\n")
        print("\n".join(model_table(latency, bandwidth)))
    if options.write:
        with open(options.write) as file:
            text = file.read()
        begin, end = "<!-- CONTEXT_TABLES -->", "<!-- /CONTEXT_TABLES -->"
        if begin not in text:
            print(f"{options.write} has no {begin}", file=sys.stderr)
            return 1
        text = re.sub(f"(?s){begin}.*{end}", lambda _: "\n".join([begin] + measured + [end]), text)
        with open(options.write, "w") as file:
            file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
