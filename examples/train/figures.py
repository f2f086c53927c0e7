# SPDX-License-Identifier: Apache-2.0
"""Plots of accuracies with their spread over seeds, as SVG, and Markdown tables; no dependency but Python."""

import math
import pathlib
import statistics
import sys
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "bench" / "peers"))

from plot import COLOURS, segment, text  # noqa: E402

WIDTH, HEIGHT, GAP, LEFT, TOP = 300, 260, 24, 60, 64


@dataclass
class Line:
    name: str
    points: dict  # x: [y of each seed]
    dashed: bool = False


@dataclass
class Panel:
    title: str
    lines: list = field(default_factory=list)


def mean(values):
    return statistics.fmean(values)


def mean_and_spread(values):
    """"0.93 ± 0.02": the mean and half the distance of the extremes."""
    if not values:
        return "not yet run"
    spread = f" ± {(max(values) - min(values)) / 2:.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread}"


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _line(line, colour, x_of, y_of):
    places = [(x_of(x), y_of(mean(ys)), y_of(min(ys)), y_of(max(ys))) for x, ys in sorted(line.points.items())]
    dash = ' stroke-dasharray="6 4"' if line.dashed else ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in places)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2"{dash}/>']
    for x, y, low, high in places:
        parts.append(segment(x, low, x, high, colour, 1.5))
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="{colour}" stroke="white"/>')
    return parts


def svg(title, x_label, panels, x_names=str):
    """One SVG: x logarithmic, its ticks at the points' own x, accuracy from 0 to 1; bars from the worst to the best seed."""
    xs = sorted({x for panel in panels for line in panel.lines for x in line.points})
    low, high = math.log(xs[0]) - 0.2, math.log(xs[-1]) + 0.2
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    width, bottom = LEFT + len(panels) * (WIDTH + GAP), TOP + HEIGHT
    height = bottom + 50 + 20 * math.ceil(len(names) / 3)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
             'font-family="Helvetica, Arial, sans-serif" fill="#222222">',
             f'<rect width="{width}" height="{height}" fill="white"/>', text(width / 2, 24, escape(title), 15, weight="bold"),
             text(18, TOP + HEIGHT / 2, "accuracy", 13, rotate=True)]

    def y_of(value):
        return bottom - value * HEIGHT

    for index, panel in enumerate(panels):
        left = LEFT + index * (WIDTH + GAP)

        def x_of(value, left=left):
            return left + (math.log(value) - low) / (high - low) * WIDTH

        for value in (0, 0.25, 0.5, 0.75, 1):
            parts.append(segment(left, y_of(value), left + WIDTH, y_of(value), "#dddddd"))
            if index == 0:
                parts.append(text(left - 8, y_of(value) + 4, f"{value:g}", anchor="end"))
        parts += [text(x_of(x), bottom + 18, escape(x_names(x)), 11) for x in xs]
        parts.append(f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#444444"/>')
        centre = left + WIDTH / 2
        parts += [text(centre, TOP - 10, escape(panel.title), 13), text(centre, bottom + 36, escape(x_label))]
        for line in panel.lines:
            parts += _line(line, colours[line.name], x_of, y_of)
    for index, name in enumerate(names):
        x, y = LEFT + index % 3 * (width - LEFT) / 3, bottom + 56 + 20 * (index // 3)
        parts += [segment(x, y, x + 28, y, colours[name], 2.2), text(x + 36, y + 4, escape(name), anchor="start")]
    return "\n".join(parts) + "\n</svg>\n"
