#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fills the tables and plots of docs/science.md from results in docs/science/.

    science.py [--add build/train/figure2_small.json …]

--add copies results there first. Between <!-- table NAME --> and <!-- end --> the page gets what NAME.json says: runs, card,
date and command, then the table; or that it was not yet run.
"""

import argparse
import json
import pathlib
import re
import shutil

import figure2
import read_twice
import recall
import speed
import short_prompts

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
RESULTS = DOCS / "science"
FIGURES = {"figure2": figure2, "recall": recall, "read_twice": read_twice}


def origin(rows):
    """Where and when the rows were made."""
    devices = sorted({row["device"] for row in rows})
    dates = sorted({row["date"] for row in rows})
    seconds = sum(row["seconds"] for row in rows)
    return (f"{len(rows)} runs, {seconds:.0f} s together, on {'; '.join(devices)}; PyTorch {rows[0]['torch']}; "
            f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}. `{rows[0]['command']}`")


def section(name):
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return "**Not yet run.**"
    results = json.loads(path.read_text())
    figure = name.rsplit("_", 1)[0]
    if name.startswith("speed"):
        return f"{results['device']}, PyTorch {results['torch']}, {results['date']}.\n\n{speed.table(results)}"
    if figure == "short_prompts":
        return f"{results['origin']}\n\n{short_prompts.table(results['evaluations'])}"
    (RESULTS / f"{name}.svg").write_text(FIGURES[figure].plot(results))
    return f"{origin(results)}\n\n{FIGURES[figure].table(results)}\n\n![{name}](science/{name}.svg)"


def filled(page):
    return re.sub(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)",
                  lambda match: f"{match[1]}{section(match[2])}\n{match[3]}", page, flags=re.DOTALL)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", nargs="+", type=pathlib.Path, default=[])
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for path in arguments.add:
        shutil.copy(path, RESULTS / path.name)
    page = DOCS / "science.md"
    page.write_text(filled(page.read_text()))


if __name__ == "__main__":
    main()
