# SPDX-License-Identifier: Apache-2.0
"""Log-log line plots as SVG, in rows of panels, without any dependency. All share the axis of x, a row that of y."""

import math
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

# Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = ["#d55e00", "#e69f00", "#cc79a7", "#56b4e9", "#0072b2", "#555555"]
PANEL_WIDTH, PANEL_HEIGHT, GAP = 400, 380, 24
LEFT, TOP, BELOW_AXIS, LEGEND_ROW = 66, 70, 48, 22
ROW_HEIGHT = PANEL_HEIGHT + BELOW_AXIS + 40  # with the titles of its panels
LEGEND_COLUMNS = 3


@dataclass
class Line:
    name: str
    points: dict  # x: y
    dashed: bool = False
    wide: bool = False  # still to be seen under a line that has the same points


@dataclass
class Panel:
    title: str
    lines: list = field(default_factory=list)


@dataclass
class Row:
    y_label: str
    panels: list


class LogAxis:
    """Maps [low, high] to [begin, end] on a logarithmic scale."""

    def __init__(self, values, begin, end):
        # A tenth of a decade of air, so that no marker lies on the frame.
        self.low = math.log10(min(values)) - 0.1
        self.high = math.log10(max(values)) + 0.1
        self.begin, self.end = begin, end

    def __call__(self, value):
        return self.begin + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self.begin)

    def decades(self):
        return range(math.ceil(self.low), math.floor(self.high) + 1)

    def between_decades(self):
        for decade in range(math.floor(self.low), math.ceil(self.high)):
            for digit in range(2, 10):
                if self.low <= math.log10(digit) + decade <= self.high:
                    yield digit * 10.0**decade


def text(x, y, content, size=12, anchor="middle", weight="normal", rotate=False):
    """`content` is markup; what is not made here goes through `escape` first."""
    rotated = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if rotate else ""
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"{rotated}>'
            f"{content}</text>")


def segment(x1, y1, x2, y2, colour, width=1.0):
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width}"/>')


def power(decade):
    return f'10<tspan dy="-5" font-size="9">{"−" if decade < 0 else ""}{abs(decade)}</tspan>'


def grid(x_axis, y_axis, with_labels):
    left, right, bottom, top = x_axis.begin, x_axis.end, y_axis.begin, y_axis.end
    parts = []
    for value in x_axis.between_decades():
        parts.append(segment(x_axis(value), bottom - 4, x_axis(value), bottom, "#444444"))
    for value in y_axis.between_decades():
        parts.append(segment(left, y_axis(value), left + 4, y_axis(value), "#444444"))
    for decade in x_axis.decades():
        x = x_axis(10.0**decade)
        parts += [segment(x, top, x, bottom, "#dddddd"), text(x, bottom + 18, power(decade))]
    for decade in y_axis.decades():
        y = y_axis(10.0**decade)
        parts.append(segment(left, y, right, y, "#dddddd"))
        if with_labels:
            parts.append(text(left - 8, y + 4, power(decade), anchor="end"))
    parts.append(f'<rect x="{left}" y="{top}" width="{PANEL_WIDTH}" height="{PANEL_HEIGHT}" fill="none" stroke="#444444"/>')
    return parts


def stroke(line, colour):
    width = 7 if line.wide else 2.2
    style = 'stroke-width="1.5" stroke-dasharray="6 4"' if line.dashed else f'stroke-width="{width}"'
    return f'stroke="{colour}" {style}'


def draw(line, colour, x_axis, y_axis):
    places = [(x_axis(x), y_axis(y)) for x, y in sorted(line.points.items())]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline points="{path}" fill="none" stroke-linejoin="round" {stroke(line, colour)}/>']
    if not line.dashed:
        radius = 6.4 if line.wide else 3.6
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}" stroke="white"/>' for x, y in places]
    return parts


def legend(lines, colours, top, width):
    parts = []
    for index, line in enumerate(lines):
        x = LEFT + index % LEGEND_COLUMNS * (width - LEFT) / LEGEND_COLUMNS
        y = top + index // LEGEND_COLUMNS * LEGEND_ROW
        parts.append(f'<line x1="{x:.1f}" y1="{y}" x2="{x + 28:.1f}" y2="{y}" {stroke(line, colours[line.name])}/>')
        if not line.dashed:
            parts.append(f'<circle cx="{x + 14:.1f}" cy="{y}" r="3.6" fill="{colours[line.name]}" stroke="white"/>')
        parts.append(text(x + 36, y + 4, escape(line.name), anchor="start"))
    return parts


def drawn_row(row, top, x_label, all_x, colours):
    all_y = [y for panel in row.panels for line in panel.lines for y in line.points.values()]
    bottom = top + PANEL_HEIGHT
    parts = [text(20, top + PANEL_HEIGHT / 2, escape(row.y_label), 13, rotate=True)]
    for index, panel in enumerate(row.panels):
        left = LEFT + index * (PANEL_WIDTH + GAP)
        x_axis = LogAxis(all_x, left, left + PANEL_WIDTH)
        y_axis = LogAxis(all_y, bottom, top)
        parts += grid(x_axis, y_axis, index == 0)
        parts.append(text(left + PANEL_WIDTH / 2, top - 12, escape(panel.title), 13))
        parts.append(text(left + PANEL_WIDTH / 2, bottom + 40, escape(x_label), 13))
        for line in panel.lines:
            if line.points:
                parts += draw(line, colours[line.name], x_axis, y_axis)
    return parts


def svg(title, x_label, rows):
    """One SVG document. A line's colour belongs to its name; lines without points are left out, of the legend as well."""
    lines = [line for row in rows for panel in row.panels for line in panel.lines]
    names = list(dict.fromkeys(line.name for line in lines))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    # The legend shows a name as it was drawn first.
    in_legend = list({line.name: line for line in reversed(lines) if line.points}.values())
    in_legend.sort(key=lambda line: names.index(line.name))
    all_x = [x for line in lines for x in line.points]
    columns = max(len(row.panels) for row in rows)
    width = LEFT + columns * PANEL_WIDTH + (columns - 1) * GAP + 20
    below = TOP + (len(rows) - 1) * ROW_HEIGHT + PANEL_HEIGHT + BELOW_AXIS
    height = below + 20 + math.ceil(len(in_legend) / LEGEND_COLUMNS) * LEGEND_ROW
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
             f'font-family="Helvetica, Arial, sans-serif" fill="#222222">',
             f'<rect width="{width}" height="{height}" fill="white"/>',
             text(width / 2, 26, escape(title), 16, weight="bold")]
    for index, row in enumerate(rows):
        parts += drawn_row(row, TOP + index * ROW_HEIGHT, x_label, all_x, colours)
    parts += legend(in_legend, colours, below + 16, width)
    return "\n".join(parts) + "\n</svg>\n"
