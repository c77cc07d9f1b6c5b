"""A chart with a row for each training: a dot for every seed, a bar at their mean, a line as far as they reach."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from groupdetr.report.chart import Axis, dot, hue, label, numbered
from groupdetr.report.page import Html, join, text

_WIDTH, _ROW, _TOP, _BOTTOM, _RIGHT = 440, 36, 6, 44, 52
_STYLE = (
    "max-width:660px"  # it stands alone: wider, its words would be larger than those of the page
)


@dataclass(frozen=True)
class Row:
    """``values`` in any order; those that are undefined are left out."""

    name: str
    values: Sequence[float]

    @property
    def finite(self) -> list[float]:
        return [value for value in self.values if math.isfinite(value)]

    @property
    def mean(self) -> str:
        return f"{fmean(self.finite):.1f}" if self.finite else "–"


def dot_chart(title: str, axis: str, rows: Sequence[Row], caption: str = "") -> Html:
    """A numbered figure, its rows in the colours of a line chart's series. Without a number it says so."""
    values = [value for row in rows for value in row.finite]
    if not values:
        return numbered(Html(""), f"{title}: no data.")
    bottom = _TOP + _ROW * len(rows)
    x = Axis.rounded(values, 18 + 7.8 * max(len(row.name) for row in rows), _WIDTH - _RIGHT)
    drawn = [*_axis(x, axis, bottom), *(_row(x, i, row) for i, row in enumerate(rows))]
    words = text(f"{title}: {', '.join(f'{row.name} {row.mean}' for row in rows)}")
    size = f'viewBox="0 0 {_WIDTH} {bottom + _BOTTOM}" style="{_STYLE}"'
    svg = f'<svg {size} role="img" aria-label="{words}">\n{join(drawn)}\n</svg>'
    return numbered(Html(svg), f"{title}. {caption}".strip())


def _axis(x: Axis, name: str, bottom: float) -> Iterator[Html]:
    for tick in x.ticks:
        at = x(tick)
        yield Html(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        yield label(at, bottom + 18, x.words(tick), "middle")
    yield Html(
        f'<line class="axis" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{bottom}" y2="{bottom}"/>'
    )
    yield label((x.start + x.end) / 2, bottom + 38, name, "middle")


def _row(x: Axis, index: int, row: Row) -> Html:
    """Its name at the left, its mean in figures at the right."""
    y, colour = _TOP + _ROW * (index + 0.5), hue(index)
    bold = f'class="name" style="fill:{colour}"'
    name, figure = (
        label(at, y + 4, words, "end", bold)
        for at, words in ((x.start - 12, row.name), (_WIDTH - 6, row.mean))
    )
    if not row.finite:
        return join([name, figure])
    low, mean, high = (x(value) for value in (min(row.finite), fmean(row.finite), max(row.finite)))
    line = f'<line class="line" style="stroke:{colour}" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>'
    bar = f'<rect style="fill:{colour}" x="{mean - 2:.1f}" y="{y - 10}" width="4" height="20"/>'
    dots = [dot((x(value), y), f"{row.name}: {value:.1f}", colour) for value in row.finite]
    return join([name, *map(Html, (line, bar, *dots)), figure])
