#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Associative recall with many queries (MQAR): accuracy against the size of the state.

    recall.py --setting small|smoke [--minutes 8] [--device cpu|cuda]

Based, linear attention with the features elu(x) + 1, and a Transformer, all causal: how much a state can recall, without any
question of order.
"""

import pathlib

import figures
from experiment import Run, parser_of, run_all
from models import Shape
from tasks import Recall
from training import Settings

TITLES = {"based": "Based", "elu": "linear attention, elu + 1", "transformer": "Transformer"}


def runs_of(setting, arguments):
    if setting == "smoke":
        task = Recall(32, ((24, 4),), ((24, 4),), test_count=200)
        settings = Settings(arguments.steps or 300, 64, arguments.rate or 5e-3, graphs=not arguments.no_graphs)
        shape = Shape(32, width=32, layers=4, heads=2, feature_dim=4, hidden=64)
        return [Run("based", shape, task, settings, 1)]
    task = Recall(512, ((64, 4), (64, 8), (64, 16), (128, 32)), ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64)))
    settings = Settings(arguments.steps or 5000, 256, arguments.rate or 3e-3, graphs=not arguments.no_graphs)
    runs = []
    for seed in (1, 2):
        for feature_dim in (4, 8, 16):
            shape = Shape(512, width=64, layers=4, heads=2, feature_dim=feature_dim)
            runs.append(Run("based", shape, task, settings, seed))
        runs += [Run(kind, shape, task, settings, seed) for kind in ("elu", "transformer")]
    return runs


def _tests(rows):
    return list(dict.fromkeys(name for row in rows for name in row["accuracy"]))


def table(rows):
    body = []
    for kind, title in TITLES.items():
        for size in sorted({row["state_bytes"] for row in rows if row["kind"] == kind}, key=lambda size: size or 0):
            same = [row for row in rows if row["kind"] == kind and row["state_bytes"] == size]
            body.append([title, "grows" if size is None else size, len(same),
                         *(figures.mean_and_spread([row["accuracy"][name] for row in same]) for name in _tests(rows))])
    return figures.table(["model", "state, bytes", "seeds", *(f"{name.split('_')[1]} pairs" for name in _tests(rows))], body)


def plot(rows):
    panel = figures.Panel("Based")
    for name in _tests(rows):
        points = {}
        for row in rows:
            if row["kind"] == "based":
                points.setdefault(row["state_bytes"], []).append(row["accuracy"][name])
        panel.lines.append(figures.Line(f"{name.split('_')[1]} pairs", points))
    return figures.svg("Recall", "state of a sequence, KiB", [panel], lambda size: f"{size / 1024:.1f}")


def main():
    arguments = parser_of(__doc__, ("small", "smoke"), "recall").parse_args()
    rows = run_all(runs_of(arguments.setting, arguments), arguments, "recall")
    text = table(rows)
    print(f"\n{text}\n")
    stem = arguments.folder / f"recall_{arguments.setting}"
    pathlib.Path(f"{stem}.md").write_text(text + "\n")
    pathlib.Path(f"{stem}.svg").write_text(plot(rows))
    print(f"{stem}.svg")


if __name__ == "__main__":
    main()
