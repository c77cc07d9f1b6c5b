"""Dot charts as inline SVG, with one row for each training.

A row has a dot for every value, a bar at their mean or median, and a line from the lowest to the
highest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from groupdetr.report.chart import Axis, line_colour, marker, numbered, svg_text
from groupdetr.report.page import Html, escape, join

# Pixels of the drawing.
_WIDTH = 440
_ROW_HEIGHT = 36
_TOP = 6
_BOTTOM = 44
_RIGHT = 52
_MIN_AXIS = 240  # of the part with the dots
# The chart has no other chart next to it. If it were wider, its letters would be larger than those
# of the page.
_STYLE = "max-width:660px"


@dataclass(frozen=True)
class DotRow:
    """The name and the values of one row, in any order. Values that are not finite are left out."""

    name: str
    values: Sequence[float]
    colour: int | None = None  # index of the colour; None: that of its position
    median: bool = False  # True: the bar and the number are the median, and not the mean

    @property
    def finite(self) -> list[float]:
        return [value for value in self.values if math.isfinite(value)]

    @property
    def centre(self) -> float:
        """The value of the bar."""
        return median(self.finite) if self.median else fmean(self.finite)

    @property
    def number(self) -> str:
        """The value of the bar as a text; a dash if there is none."""
        return f"{self.centre:.1f}" if self.finite else "–"


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
    # Long names leave room for the dots.
    width = max(_WIDTH, left + _MIN_AXIS + _RIGHT)
    x_axis = Axis.rounded(values, left, width - _RIGHT)
    parts = list(_axis(x_axis, axis_name, bottom))
    for index, row in enumerate(rows):
        parts.append(_row(x_axis, index, row, width))

    means = ", ".join(f"{row.name} {row.number}" for row in rows)
    size = f'viewBox="0 0 {width:.0f} {bottom + _BOTTOM}" style="{_STYLE}"'
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


def _row(x_axis: Axis, index: int, row: DotRow, width: float) -> Html:
    """Return the name at the left, the dots, and the mean as a number at the right."""
    y = _TOP + _ROW_HEIGHT * (index + 0.5)
    colour = line_colour(index if row.colour is None else row.colour)
    bold = f'class="name" style="fill:{colour}"'
    name = svg_text(x_axis.start - 12, y + 4, row.name, "end", bold)
    mean_label = svg_text(width - 6, y + 4, row.number, "end", bold)
    if not row.finite:
        return join([name, mean_label])

    low = x_axis(min(row.finite))
    mean = x_axis(row.centre)
    high = x_axis(max(row.finite))
    ends = f'x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"'
    line = Html(f'<line class="line" style="stroke:{colour}" {ends}/>')
    bar_position = f'x="{mean - 2:.1f}" y="{y - 10}" width="4" height="20"'
    bar = Html(f'<rect style="fill:{colour}" {bar_position}/>')
    dots = [marker((x_axis(value), y), f"{row.name}: {value:.1f}", colour) for value in row.finite]
    return join([name, line, bar, *dots, mean_label])
