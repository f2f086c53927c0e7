#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""JRT-Prompt in miniature: language models of documents with facts, asked after one reading and after two.

    read_twice.py --setting small|smoke [--minutes 8] [--device cpu|cuda]

Based, linear attention with the features elu(x) + 1, JRT-RNN and a Transformer. Claim: two readings gain, most where the
state is small.
"""

import dataclasses
import pathlib

import figures
from experiment import Run, parser_of, run_all
from facts import Corpus
from models import Shape
from tasks import Facts
from training import Settings

TITLES = {"based": "Based", "elu": "linear attention, elu + 1", "jrt": "JRT-RNN", "transformer": "Transformer"}


def runs_of(setting, arguments):
    if setting == "smoke":
        task = Facts(Corpus(16, 1, 8), (2, 4), (4,), test_count=200)
        settings = Settings(arguments.steps or 300, 32, arguments.rate or 5e-3, graphs=not arguments.no_graphs)
        shape = Shape(task.corpus.vocabulary, width=32, layers=4, heads=2, feature_dim=4, hidden=64)
        return [Run(kind, shape, dataclasses.replace(task, encoder=kind == "jrt"), settings, 1) for kind in ("based", "jrt")]
    task = Facts(Corpus(), (2, 4, 8, 16, 32), (8, 16, 32))
    settings = Settings(arguments.steps or 10000, 128, arguments.rate or 3e-3, graphs=not arguments.no_graphs)
    runs = []
    for seed in (1, 2):
        for feature_dim in (4, 8, 16):
            shape = Shape(task.corpus.vocabulary, width=64, layers=4, heads=2, feature_dim=feature_dim)
            runs += [Run(kind, shape, dataclasses.replace(task, encoder=kind == "jrt"), settings, seed)
                     for kind in ("based", "jrt")]
        runs += [Run(kind, shape, task, settings, seed) for kind in ("elu", "transformer")]
    return runs


def table(rows):
    body = []
    for kind, title in TITLES.items():
        for size in sorted({row["state_bytes"] for row in rows if row["kind"] == kind}, key=lambda size: size or 0):
            same = [row for row in rows if row["kind"] == kind and row["state_bytes"] == size]
            for number in dict.fromkeys(int(name.split("_")[0]) for name in same[0]["accuracy"]):
                once, twice = ([row["accuracy"][f"{number}_facts_{readings}_readings"] for row in same] for readings in (1, 2))
                gain = [b - a for a, b in zip(once, twice)]
                body.append([title, "grows" if size is None else size, number, len(same),
                             *map(figures.mean_and_spread, (once, twice, gain))])
    return figures.table(["model", "state, bytes", "facts", "seeds", "read once", "read twice", "gain"], body)


def plot(rows):
    panels = []
    for number in dict.fromkeys(int(name.split("_")[0]) for row in rows for name in row["accuracy"]):
        panel = figures.Panel(f"{number} facts")
        for kind in ("based", "jrt"):
            for readings, words in ((1, "read once"), (2, "read twice")):
                points = {}
                for row in rows:
                    if row["kind"] == kind:
                        accuracy = row["accuracy"][f"{number}_facts_{readings}_readings"]
                        points.setdefault(row["state_bytes"], []).append(accuracy)
                panel.lines.append(figures.Line(f"{TITLES[kind]}, {words}", points, dashed=readings == 2))
        panels.append(panel)
    return figures.svg("Facts recalled from a document", "state of a sequence, KiB", panels,
                       lambda size: f"{size / 1024:.1f}")


def main():
    arguments = parser_of(__doc__, ("small", "smoke"), "read_twice").parse_args()
    rows = run_all(runs_of(arguments.setting, arguments), arguments, "read_twice")
    text = table(rows)
    print(f"\n{text}\n")
    stem = arguments.folder / f"read_twice_{arguments.setting}"
    pathlib.Path(f"{stem}.md").write_text(text + "\n")
    pathlib.Path(f"{stem}.svg").write_text(plot(rows))
    print(f"{stem}.svg")


if __name__ == "__main__":
    main()
