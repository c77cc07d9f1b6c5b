"""A line chart as inline SVG: nice axes, lines named where they end, a band for the spread, values on hover."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from groupdetr.report.page import Html, join, swatches, text

_WIDTH, _HEIGHT = 440, 290
_TOP, _BOTTOM, _LEFT, _RIGHT = 26, 44, 52, 14  # margins; names of lines take more at the right
_COLOURS = 7  # --s0 .. --s6 of the style sheet
_MOST_POINTS, _MOST_MARKERS, _MOST_NAMES, _LONGEST_NAME = 400, 40, 5, 14
_Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line. A nan breaks it; ``low`` and ``high`` draw a band around it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()

    def thinned(self) -> Series:
        """No more points than a screen can show, the last one kept."""
        step = math.ceil(len(self.x) / _MOST_POINTS) or 1
        return Series(
            self.name,
            *(tuple(v)[::-1][::step][::-1] for v in (self.x, self.y, self.low, self.high)),
        )


@dataclass(frozen=True)
class Chart:
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    caption: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(any(_runs(s.x, s.y)) for s in self.series)


def charts(items: Sequence[Chart]) -> Html:
    """Charts side by side where there is room."""
    return Html(f'<div class="charts">\n{join(map(line_chart, items))}\n</div>')


def line_chart(chart: Chart) -> Html:
    """A numbered figure. Series without a finite point are left out; if none is left, it says so."""
    lines = {i: s.thinned() for i, s in enumerate(chart.series) if any(_runs(s.x, s.y))}
    if not lines:
        return numbered(Html(""), f"{chart.title}: no data.")
    named = len(lines) <= _MOST_NAMES and all(len(s.name) <= _LONGEST_NAME for s in lines.values())
    frame = _Frame.around(list(lines.values()), room=_room(lines.values()) if named else 0)
    drawn = [*_axes(frame, chart), *(_series(frame, i, s) for i, s in lines.items())]
    drawn += _names(frame, lines) if named else []
    legend = Html("") if named else swatches([(hue(i), s.name) for i, s in lines.items()])
    words = text(f"{chart.title}: {chart.y_label} by {chart.x_label}")
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{words}">\n{join(drawn)}\n</svg>'
    return numbered(Html(svg + legend), f"{chart.title}. {chart.caption}".strip())


def nice_step(low: float, high: float, count: int) -> float:
    """1, 2 or 5 times a power of ten, so that no more than about ``count`` steps cover [low, high]."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))


@dataclass(frozen=True)
class Axis:
    """Numbers to pixels along one side."""

    low: float
    high: float
    step: float  # from tick to tick
    start: float  # pixel of ``low``
    end: float  # pixel of ``high``

    @classmethod
    def rounded(cls, values: Sequence[float], start: float, end: float) -> Axis:
        """From tick to tick."""
        low, high = _extent(values)
        step = nice_step(low, high, 5)
        return cls(
            math.floor(low / step + 1e-9) * step,
            math.ceil(high / step - 1e-9) * step,
            step,
            start,
            end,
        )

    @classmethod
    def tight(cls, values: Sequence[float], start: float, end: float) -> Axis:
        """No wider than the values, so that lines use all the room; epochs are not divided."""
        low, high = _extent(values)
        whole = all(float(v).is_integer() for v in values)
        return cls(low, high, max(nice_step(low, high, 6), float(whole)), start, end)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        first, last = (
            math.ceil(self.low / self.step - 1e-9),
            math.floor(self.high / self.step + 1e-9),
        )
        return [i * self.step for i in range(first, last + 1)]

    def words(self, tick: float) -> str:
        """No more digits than tell the ticks apart."""
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        if tick and not 1e-3 < self.step < 1e5:  # a longer number would not fit beside the axis
            mantissa, exponent = f"{tick:.1e}".split("e")
            return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")
        return f"{tick:,.{min(digits, 4)}f}".replace("-", "−") if tick else "0"


def _extent(values: Sequence[float]) -> _Point:
    """From the least to the largest, from zero if that costs little room, and never empty."""
    low, high = min(values), max(values)
    if 0 < low < 0.4 * high:
        low = 0.0
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(low) / 2 or 1.0
        low, high = low - room, high + room
    return low, high


@dataclass(frozen=True)
class _Frame:
    """The plane of the chart."""

    x: Axis
    y: Axis

    @classmethod
    def around(cls, series: Sequence[Series], room: float) -> _Frame:
        """``room``: pixels for names at the right."""
        runs = [run for s in series for y in (s.y, s.low, s.high) for run in _runs(s.x, y)]
        xs, ys = zip(*(point for run in runs for point in run))
        right = _WIDTH - max(_RIGHT, min(room, _WIDTH / 3))
        return cls(Axis.tight(xs, _LEFT, right), Axis.rounded(ys, _HEIGHT - _BOTTOM, _TOP))

    def pixels(self, points: Sequence[_Point]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)


def _runs(x: Sequence[float], y: Sequence[float]) -> Iterator[list[_Point]]:
    """The unbroken stretches of finite points."""
    run: list[_Point] = []
    for point in zip(x, y):
        if all(map(math.isfinite, point)):
            run.append(point)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _axes(frame: _Frame, chart: Chart) -> Iterator[Html]:
    left, right, bottom = frame.x.start, frame.x.end, frame.y.start
    for tick in frame.y.ticks:
        y = frame.y(tick)
        yield Html(f'<line class="grid" x1="{left}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        yield label(left - 8, y + 4, frame.y.words(tick), "end")
    for tick in frame.x.ticks:
        x = frame.x(tick)
        yield Html(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        )
        yield label(x, bottom + 18, frame.x.words(tick), "middle")
    yield Html(f'<line class="axis" x1="{left}" x2="{right:.1f}" y1="{bottom}" y2="{bottom}"/>')
    yield label((left + right) / 2, _HEIGHT - 6, chart.x_label, "middle")
    yield label(2, 12, chart.y_label, "start")


def _series(frame: _Frame, index: int, series: Series) -> Html:
    colour = hue(index)
    edges = list(zip(series.x, series.low, series.high))
    band = [p for p in edges if all(map(math.isfinite, p))]
    outline = [(x, low) for x, low, _ in band] + [(x, high) for x, _, high in reversed(band)]
    parts = (
        [f'<polygon class="band" style="fill:{colour}" points="{frame.pixels(outline)}"/>']
        if len(band) > 1
        else []
    )
    runs = list(_runs(series.x, series.y))
    parts += [
        f'<polyline class="line" style="stroke:{colour}" points="{frame.pixels(run)}"/>'
        for run in runs
    ]
    if len(series.x) <= _MOST_MARKERS:
        parts += [_marker(frame, point, series.name, colour) for run in runs for point in run]
    return join(map(Html, parts))


def _marker(frame: _Frame, point: _Point, name: str, colour: str) -> str:
    words = f"{name}: {point[1]:.4g} at {point[0]:.4g}"
    return dot((frame.x(point[0]), frame.y(point[1])), words, colour)


def dot(point: _Point, words: str, colour: str) -> str:
    """A dot, under a larger invisible one that is easy to point at and then says ``words``."""
    at = f'cx="{point[0]:.1f}" cy="{point[1]:.1f}"'
    hit = f'<circle class="hit" {at} r="9"><title>{text(words)}</title></circle>'
    return f'<circle class="dot" style="fill:{colour}" {at} r="3.6"/>{hit}'


def _names(frame: _Frame, lines: dict[int, Series], height: float = 15) -> Iterator[Html]:
    """Each line's name beside its end, moved apart where ends meet."""
    last = {i: list(_runs(s.x, s.y))[-1][-1] for i, s in lines.items()}
    below = frame.y.start - height * (
        len(lines) - 1
    )  # the lowest place that leaves room for all others beneath
    y = _TOP - height
    for i in sorted(last, key=lambda i: frame.y(last[i][1])):
        y = max(y + height, min(frame.y(last[i][1]), below))
        below += height
        attributes = f'class="name" style="fill:{hue(i)}"'
        yield label(frame.x(last[i][0]) + 8, y + 4, lines[i].name, "start", attributes)


def _room(lines: Iterable[Series]) -> float:
    """Pixels for the longest name, in bold letters of 12."""
    return 14 + max(8 * len(s.name) + 4 * sum(letter in "mMW" for letter in s.name) for s in lines)


def label(x: float, y: float, words: str, anchor: str, attributes: str = "") -> Html:
    return Html(
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {attributes}>{text(words)}</text>'
    )


def hue(index: int) -> str:
    """The colour of a line, the same in every chart of a page."""
    return f"var(--s{index % _COLOURS})"


def numbered(inside: Html, caption: str) -> Html:
    return Html(
        f'<figure class="numbered">{inside}<figcaption>{text(caption)}</figcaption></figure>'
    )
