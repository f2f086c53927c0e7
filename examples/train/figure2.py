#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Set disjointness: accuracy against the size of the state, short list first or long list first (the paper's Figure 2).

    figure2.py --setting small|short|cpu|smoke [--minutes 8] [--device cpu|cuda]

Causal linear attention (based), the encoder region over both lists (jrt), both lists read twice (repeated), and a
Transformer. Claims: based is better if the short list comes first, by a gap that shrinks with the state; jrt and repeated
have no such gap.
The smoke setting fails (exit code 1) unless losses fall below what SMOKE_LOSS says.
"""

import pathlib
import sys

import figures
from experiment import Run, parser_of, run_all
from models import Shape
from tasks import SetDisjointness
from training import Settings

RECURRENT = ("based", "jrt", "repeated")
TITLES = {"based": "causal (Based)", "jrt": "JRT-RNN: encoder over both lists", "repeated": "causal, read twice",
          "transformer": "Transformer"}
SMOKE_LOSS = {"based": 1.1, "jrt": 0.7, "repeated": 1.1}


def runs_of(setting, arguments):
    if setting == "smoke":
        task = SetDisjointness(36, ((2, 8),), ((2, 8),), test_count=500)
        settings = Settings(arguments.steps or 300, 64, arguments.rate or 5e-3, graphs=not arguments.no_graphs)
        shape = Shape(36, width=32, layers=4, heads=2, feature_dim=4, hidden=64)
        return [Run(kind, shape, task, settings, 1) for kind in RECURRENT]
    if setting in ("cpu", "short"):
        task = SetDisjointness(128, ((4, 16), (4, 32)), ((4, 16), (4, 32)))
        settings = Settings(arguments.steps or 1500, 128, arguments.rate or 3e-3, graphs=not arguments.no_graphs)
        dims, seeds = ((4, 16), (1,)) if setting == "cpu" else (arguments.dims or (4, 8, 16), arguments.seeds or (1, 2, 3))
        return [Run(kind, Shape(128, feature_dim=feature_dim), task, settings, seed)
                for seed in seeds for feature_dim in dims for kind in RECURRENT]
    task = SetDisjointness(1024, ((4, 16), (4, 64), (8, 128), (4, 256)), ((4, 16), (4, 64), (4, 128), (8, 128), (4, 256)))
    settings = Settings(arguments.steps or 10000, 128, arguments.rate or 3e-3, graphs=not arguments.no_graphs)
    width, runs = arguments.width or 64, []
    for seed in arguments.seeds or (1, 2):
        for feature_dim in arguments.dims or (4, 8, 16):
            shape = Shape(1024, width=width, layers=4, heads=2, feature_dim=feature_dim, hidden=2 * width)
            runs += [Run(kind, shape, task, settings, seed) for kind in RECURRENT]
        runs.append(Run("transformer", shape, task, settings, seed))
    return runs


def is_short_first(slice_name):
    first, second = map(int, slice_name.split("_"))
    return first < second


def order_mean(row, short_first, longest=False):
    """Mean accuracy over the list lengths of one order, or that of the longest lists alone."""
    names = [name for name in row["accuracy"] if is_short_first(name) == short_first]
    if longest:
        names = [max(names, key=lambda name: sum(map(int, name.split("_"))))]
    return figures.mean([row["accuracy"][name] for name in names])


def table(rows):
    body = []
    for kind in (*RECURRENT, "transformer"):
        sizes = sorted({row["state_bytes"] for row in rows if row["kind"] == kind}, key=lambda size: size or 0)
        for size in sizes:
            same = [row for row in rows if row["kind"] == kind and row["state_bytes"] == size]
            cells = []
            for longest in (False, True):
                short, long = ([order_mean(row, first, longest) for row in same] for first in (True, False))
                cells += [short, long, [a - b for a, b in zip(short, long)]]
            body.append([TITLES[kind], "grows" if size is None else size, len(same), *map(figures.mean_and_spread, cells)])
    return figures.table(["model", "state, bytes", "seeds", "short first", "long first", "gap", "longest lists: short first",
                          "long first", "gap"], body)


def plot(rows):
    panels = []
    for kind in RECURRENT:
        panel = figures.Panel(TITLES[kind])
        for short_first, name in ((True, "short list first"), (False, "long list first")):
            points = {}
            for row in rows:
                if row["kind"] == kind:
                    points.setdefault(row["state_bytes"], []).append(order_mean(row, short_first))
            panel.lines.append(figures.Line(name, points))
        panels.append(panel)
    return figures.svg("Set disjointness", "state of a sequence, KiB", panels, lambda size: f"{size / 1024:.1f}")


def numbers(text):
    return tuple(int(number) for number in text.split(","))


def main():
    parser = parser_of(__doc__, ("small", "short", "cpu", "smoke"), "figure2")
    parser.add_argument("--dims", type=numbers, help="of keys, which set the state's size (4,8,16; small, short)")
    parser.add_argument("--width", type=int, help="of the models (small)")
    parser.add_argument("--seeds", type=numbers, help="(1,2 for small; 1,2,3 for short)")
    arguments = parser.parse_args()
    rows = run_all(runs_of(arguments.setting, arguments), arguments, "figure2")
    text = table(rows)
    print(f"\n{text}\n")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    stem = arguments.folder / f"figure2_{arguments.setting}"
    pathlib.Path(f"{stem}.md").write_text(text + "\n")
    pathlib.Path(f"{stem}.svg").write_text(plot(rows))
    print(f"{stem}.svg")
    if arguments.setting == "smoke":
        failed = [row["name"] for row in rows if not row["losses"][-1][1] < SMOKE_LOSS[row["kind"]]]
        if failed:
            print(f"DID NOT LEARN: {', '.join(failed)}")
            sys.exit(1)


if __name__ == "__main__":
    main()
