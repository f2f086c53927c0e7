#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Puts language models side by side: what jrt_lm and full_attention_model.py measured, a table for each model.

    compare_models.py --out table.md FILE...

Files are the JSON of either program, in any order. Tokens are those of the prompts as given: a model that reads a prompt
twice (JRT-Prompt) gets no credit for the second time. "jrt PLA" has a prefix, "jrt Based" is causal. Ratios are our tokens
per second over the peer's; for decoding, the peer is the faster of its rows. "Kept" is what decoding needs of a sequence
after a prompt of N tokens: states, or keys and values. Columns in which nothing was measured are left out.

Below each table: how much the time of jrt's decode step differs between prompt lengths, and whether it is within 3 %.
"""

import argparse
import json

PEERS = ("FA2", "cuDNN")
OURS = {"jrt PLA": (True, 1), "jrt Based": (False, 1), "jrt read twice": (False, 2), "jrt PLA read twice": (True, 2)}
MOST_SPREAD = 0.03
NOTHING = "–"


class Results:
    """Of one model: rows by (name, batch, tokens)."""

    def __init__(self):
        self.rows = {}

    def add_ours(self, measurement):
        kind = (measurement.get("prefix", 0) > 0, measurement.get("reads", 1))
        name = next((name for name, known in OURS.items() if known == kind), None)
        if name is None:
            raise SystemExit(f"not a known way to read a prompt: {measurement}")
        self.add(name, measurement, measurement.get("state_bytes_per_sequence"))

    def add_peer(self, row):
        self.add(row["attention"], row, row.get("cache_bytes_per_sequence"))

    def add(self, name, measurement, kept):
        batch, tokens = measurement["batch"], measurement["tokens"]
        row = {"batch": batch, "error": measurement.get("error"), "kept": kept}
        if measurement.get("prefill_ms") is not None:
            row["prefill"] = batch * tokens / measurement["prefill_ms"] * 1e3
        if measurement.get("decode_ms_per_token") is not None:
            row["step_ms"] = measurement["decode_ms_per_token"]
            row["decode"] = batch / row["step_ms"] * 1e3
        self.rows[name, batch, tokens] = row

    def get(self, name, shape, what):
        return self.rows.get((name, *shape), {}).get(what)

    def best_peer(self, shape, what):
        return max((value for name in PEERS if (value := self.get(name, shape, what)) is not None), default=None)

    def shapes(self):
        return sorted({key[1:] for key in self.rows}, key=lambda shape: (-shape[0], shape[1]))


def read(paths):
    """{model: results}, and a line on what they were measured with."""
    models = {}
    devices, versions = set(), set()
    for path in paths:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        results = models.setdefault(content["model"], Results())
        if "measurements" in content:
            devices.add(content["device"])
            for measurement in content["measurements"]:
                results.add_ours(measurement)
        else:
            devices.add(content["GPU"])
            versions.add(f"PyTorch {content['torch']}" + ("" if content.get("compiled", True) else " without torch.compile"))
            for row in content["results"]:
                results.add_peer(row)
    if len(devices) > 1:
        raise SystemExit(f"not comparable: measured on {' and on '.join(sorted(devices))}")
    return models, ", ".join([*devices, *sorted(versions)])


def rate(value):
    """Tokens per second, in three digits."""
    if value is None:
        return NOTHING
    for size, unit in ((1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * size:
            value /= size
            return f"{value:.{max(0, 3 - len(str(int(value))))}f}{unit}"
    return f"{value:.0f}"


def size(value):
    if value is None:
        return NOTHING
    for bytes_of_unit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if value >= bytes_of_unit:
            return f"{value / bytes_of_unit:.{1 if value < 100 * bytes_of_unit else 0}f} {unit}"
    return f"{value:.0f} B"


def ratio(ours, peer):
    if ours is None or peer is None:
        return NOTHING
    return f"{ours / peer:.{0 if ours >= 10 * peer else 1 if ours >= 2 * peer else 2}f}"


def prefill_cell(results, name, shape):
    value = results.get(name, shape, "prefill")
    # A row without a time says why, in many words: "skipped: would take about 60 s, more than 20".
    reason = results.get(name, shape, "error") if value is None else None
    if reason is None:
        return rate(value)
    return next((short for short in ("out of memory", "skipped") if reason.startswith(short)), "failed")


def columns(results, shapes):
    """[(title, cells)], of those in which there is something."""
    table = []

    def column(title, cell):
        table.append((title, [cell(shape) for shape in shapes]))

    for name in PEERS:
        column(f"{name}, tokens/s", lambda shape: prefill_cell(results, name, shape))
    for ours in OURS:
        column(f"{ours}, tokens/s", lambda shape: prefill_cell(results, ours, shape))
        for peer in PEERS:
            column(f"× {peer}", lambda shape: ratio(*(results.get(name, shape, "prefill") for name in (ours, peer))))
    column("decode: peer, tokens/s", lambda shape: rate(results.best_peer(shape, "decode")))
    for ours in OURS:
        column(f"decode: {ours}", lambda shape: rate(results.get(ours, shape, "decode")))
        column("× peer", lambda shape: ratio(results.get(ours, shape, "decode"), results.best_peer(shape, "decode")))
    column("kept: peer", lambda shape: size(results.best_peer(shape, "kept")))
    for ours in OURS:
        column(f"kept: {ours}", lambda shape: size(results.get(ours, shape, "kept")))
    return [(title, cells) for title, cells in table if any(cell != NOTHING for cell in cells)]


def table(results):
    shapes = results.shapes()
    shown = [("B", [str(batch) for batch, _ in shapes]), ("N", [str(tokens) for _, tokens in shapes])]
    shown += columns(results, shapes)
    lines = [[title for title, _ in shown], ["---"] * len(shown), *zip(*(cells for _, cells in shown))]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spreads(results):
    lines = []
    shapes = results.shapes()
    for name in OURS:
        for batch in dict.fromkeys(batch for batch, _ in shapes):
            steps = {tokens: step for b, tokens in shapes
                     if b == batch and (step := results.get(name, (b, tokens), "step_ms")) is not None}
            if len(steps) < 2:
                continue
            low, high = min(steps.values()), max(steps.values())
            spread = high / low - 1
            verdict = "within" if spread <= MOST_SPREAD else "NOT within"
            lines.append(f"- {name}, B {batch}: a decode step takes {low:.3f} to {high:.3f} ms after {min(steps)} to "
                         f"{max(steps)} tokens: {100 * spread:.2f} % apart, {verdict} {100 * MOST_SPREAD:.0f} %.")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="JSON of jrt_lm --json or of full_attention_model.py")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    models, measured_with = read(arguments.files)
    with open(arguments.out, "w", encoding="utf-8") as file:
        file.write(f"{measured_with}. bfloat16, B sequences with prompts of N tokens.\n")
        for model, results in sorted(models.items()):
            parts = [part for part in (f"### {model}", table(results), spreads(results)) if part]
            file.write("\n" + "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
