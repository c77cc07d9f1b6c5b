"""Dot charts as inline SVG, with one row for each training.

A row has a dot for every seed, a bar at their mean, and a line from the lowest to the highest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from groupdetr.report.chart import Axis, line_colour, marker, numbered, svg_text
from groupdetr.report.page import Html, escape, join

# Pixels of the drawing.
_WIDTH = 440
_ROW_HEIGHT = 36
_TOP = 6
_BOTTOM = 44
_RIGHT = 52
# The chart has no other chart next to it. If it were wider, its letters would be larger than those
# of the page.
_STYLE = "max-width:660px"


@dataclass(frozen=True)
class DotRow:
    """The name and the values of one row, in any order. Values that are not finite are left out."""

    name: str
    values: Sequence[float]

    @property
    def finite(self) -> list[float]:
        return [value for value in self.values if math.isfinite(value)]

    @property
    def mean(self) -> str:
        return f"{fmean(self.finite):.1f}" if self.finite else "–"


def dot_chart(title: str, axis_name: str, rows: Sequence[DotRow], caption: str = "") -> Html:
    """Return a numbered figure whose rows have the colours of the lines in a line chart.

    Without any finite value, the caption says "no data".
    """
    values: list[float] = []
    for row in rows:
        values += row.finite
    if not values:
        return numbered(Html(""), f"{title}: no data.")

    bottom = _TOP + _ROW_HEIGHT * len(rows)
    left = 18 + 7.8 * max(len(row.name) for row in rows)
    x_axis = Axis.rounded(values, left, _WIDTH - _RIGHT)
    parts = list(_axis(x_axis, axis_name, bottom))
    for index, row in enumerate(rows):
        parts.append(_row(x_axis, index, row))

    means = ", ".join(f"{row.name} {row.mean}" for row in rows)
    size = f'viewBox="0 0 {_WIDTH} {bottom + _BOTTOM}" style="{_STYLE}"'
    attributes = f'{size} role="img" aria-label="{escape(f"{title}: {means}")}"'
    svg = f"<svg {attributes}>\n{join(parts)}\n</svg>"
    return numbered(Html(svg), f"{title}. {caption}".strip())


def _axis(x_axis: Axis, name: str, bottom: float) -> Iterator[Html]:
    for tick in x_axis.ticks:
        x = x_axis(tick)
        yield Html(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        yield svg_text(x, bottom + 18, x_axis.tick_label(tick), "middle")
    ends = f'x1="{x_axis.start:.1f}" x2="{x_axis.end:.1f}" y1="{bottom}" y2="{bottom}"'
    yield Html(f'<line class="axis" {ends}/>')
    yield svg_text((x_axis.start + x_axis.end) / 2, bottom + 38, name, "middle")


def _row(x_axis: Axis, index: int, row: DotRow) -> Html:
    """Return the name at the left, the dots, and the mean as a number at the right."""
    y = _TOP + _ROW_HEIGHT * (index + 0.5)
    colour = line_colour(index)
    bold = f'class="name" style="fill:{colour}"'
    name = svg_text(x_axis.start - 12, y + 4, row.name, "end", bold)
    mean_label = svg_text(_WIDTH - 6, y + 4, row.mean, "end", bold)
    if not row.finite:
        return join([name, mean_label])

    low = x_axis(min(row.finite))
    mean = x_axis(fmean(row.finite))
    high = x_axis(max(row.finite))
    ends = f'x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"'
    line = Html(f'<line class="line" style="stroke:{colour}" {ends}/>')
    bar_position = f'x="{mean - 2:.1f}" y="{y - 10}" width="4" height="20"'
    bar = Html(f'<rect style="fill:{colour}" {bar_position}/>')
    dots = [marker((x_axis(value), y), f"{row.name}: {value:.1f}", colour) for value in row.finite]
    return join([name, line, bar, *dots, mean_label])
