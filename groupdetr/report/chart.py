"""Line charts as inline SVG.

Axes have round numbers, lines have their names at their ends, a band shows the range over seeds,
and values appear when the mouse points at them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from groupdetr.report.page import Html, escape, join, swatches

_WIDTH, _HEIGHT = 440, 290
# Margins in pixels. Names of lines need more at the right.
_TOP, _BOTTOM, _LEFT, _RIGHT = 26, 44, 52, 14
_NUM_COLOURS = 8  # --s0 .. --s7 of the style sheet
_MAX_POINTS = 400  # of a line
_MAX_MARKERS = 40  # lines with more points have no markers
# With more lines, or with longer names, the names move to a legend below the chart.
_MAX_NAMES, _MAX_NAME_LENGTH = 5, 14
_NAME_HEIGHT = 15.0  # pixels between the names of two lines
_Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line. A nan interrupts it. ``low`` and ``high`` draw a band around it.

    ``colour`` is the index of its colour; None: its position among the lines of the chart.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False
    bold: bool = False
    colour: int | None = None

    def thinned(self) -> Series:
        """Return a line with at most as many points as a screen can show.

        The last point is always kept.
        """
        step = math.ceil(len(self.x) / _MAX_POINTS) or 1

        def thin(values: Sequence[float]) -> tuple[float, ...]:
            # Counting from the end keeps the last value.
            backwards = tuple(values)[::-1][::step]
            return backwards[::-1]

        return replace(
            self, x=thin(self.x), y=thin(self.y), low=thin(self.low), high=thin(self.high)
        )

    def runs(self) -> list[list[_Point]]:
        """Return the uninterrupted runs of finite points."""
        return _finite_runs(self.x, self.y)


@dataclass(frozen=True)
class Chart:
    """The content of one figure: a title, the names of two axes, lines and a caption."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    caption: str = ""
    legend: bool = False  # True: the names of the lines are always below the chart
    cover: Sequence[_Point] = ()  # further points that the axes cover

    @property
    def empty(self) -> bool:
        """True if no line has a finite point."""
        return not any(series.runs() for series in self.series)


def charts(items: Sequence[Chart]) -> Html:
    """Return charts side by side, as many in a row as fit."""
    content = join(line_chart(item) for item in items)
    return Html(f'<div class="charts">\n{content}\n</div>')


def line_chart(chart: Chart) -> Html:
    """Return a numbered figure.

    Lines without a finite point are left out. If none is left, the caption says "no data".
    """
    lines: dict[int, Series] = {}
    for index, series in enumerate(chart.series):
        if series.runs():
            lines[index] = series.thinned()
    if not lines:
        return numbered(Html(""), f"{chart.title}: no data.")

    short_names = all(len(line.name) <= _MAX_NAME_LENGTH for line in lines.values())
    names_at_lines = len(lines) <= _MAX_NAMES and short_names and not chart.legend
    name_width = _name_width(lines.values()) if names_at_lines else 0
    axes = _Axes.around(list(lines.values()), name_width, chart.cover)

    parts = list(_draw_axes(axes, chart))
    for index, line in lines.items():
        parts.append(_line(axes, index, line))
    if names_at_lines:
        parts += _names(axes, lines)
        legend = Html("")
    else:
        legend = swatches([(_swatch(index, line), line.name) for index, line in lines.items()])

    aria_label = escape(f"{chart.title}: {chart.y_label} by {chart.x_label}")
    attributes = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{aria_label}"'
    svg = f"<svg {attributes}>\n{join(parts)}\n</svg>"
    return numbered(Html(svg + legend), f"{chart.title}. {chart.caption}".strip())


def nice_step(low: float, high: float, count: int) -> float:
    """Return a round distance between ticks: 1, 2 or 5 times a power of ten.

    At most about ``count`` steps of it cover [low, high].
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


@dataclass(frozen=True)
class Axis:
    """A linear map from numbers to pixels, with ticks."""

    low: float
    high: float
    step: float  # from tick to tick
    start: float  # pixel of ``low``
    end: float  # pixel of ``high``

    @classmethod
    def rounded(cls, values: Sequence[float], start: float, end: float) -> Axis:
        """Return an axis around the values that starts and ends at a tick."""
        low, high = _extent(values)
        step = nice_step(low, high, 5)
        first_tick = math.floor(low / step + 1e-9) * step
        last_tick = math.ceil(high / step - 1e-9) * step
        return cls(first_tick, last_tick, step, start, end)

    @classmethod
    def tight(cls, values: Sequence[float], start: float, end: float) -> Axis:
        """Return an axis no longer than the extent of the values.

        If all values are integers, such as epochs, there are no ticks between integers.
        """
        low, high = _extent(values)
        step = nice_step(low, high, 6)
        if all(float(value).is_integer() for value in values):
            step = max(step, 1.0)
        return cls(low, high, step, start, end)

    def __call__(self, value: float) -> float:
        """Return the pixel of a number."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        first = math.ceil(self.low / self.step - 1e-9)
        last = math.floor(self.high / self.step + 1e-9)
        return [index * self.step for index in range(first, last + 1)]

    def tick_label(self, tick: float) -> str:
        """Return a tick with as many digits as distinguish it from the next one."""
        if not tick:
            return "0"
        if not 1e-3 < self.step < 1e5:
            # A number with more digits would not fit next to the axis.
            mantissa, exponent = f"{tick:.1e}".split("e")
            return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        return f"{tick:,.{min(digits, 4)}f}".replace("-", "−")


def _extent(values: Sequence[float]) -> tuple[float, float]:
    """Return the range that an axis shows, which is never empty.

    It reaches from the minimum to the maximum, or from zero if that takes little room.
    """
    low, high = min(values), max(values)
    if 0 < low < 0.4 * high:
        low = 0.0
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) / 2 or 1.0
        low, high = low - margin, high + margin
    return low, high


@dataclass(frozen=True)
class _Axes:
    """The two axes of a chart."""

    x: Axis
    y: Axis

    @classmethod
    def around(
        cls, series: Sequence[Series], name_width: float, cover: Sequence[_Point] = ()
    ) -> _Axes:
        """Return axes for all finite points. ``name_width`` pixels at the right are for names.

        ``cover`` are further points of which only the axes know.
        """
        points = list(cover)
        for line in series:
            for y_values in (line.y, line.low, line.high):
                for run in _finite_runs(line.x, y_values):
                    points += run
        xs = [x for x, _ in points]
        ys = [y for _, y in points]
        right = _WIDTH - max(_RIGHT, min(name_width, _WIDTH / 3))
        # Pixels count from the top, so the y axis starts at the bottom.
        return cls(Axis.tight(xs, _LEFT, right), Axis.rounded(ys, _HEIGHT - _BOTTOM, _TOP))

    def pixels(self, points: Sequence[_Point]) -> str:
        """Return points as SVG expects them."""
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)


def _finite_runs(x_values: Sequence[float], y_values: Sequence[float]) -> list[list[_Point]]:
    """Return the uninterrupted runs of finite points."""
    runs: list[list[_Point]] = []
    interrupted = True
    for x, y in zip(x_values, y_values):
        if not (math.isfinite(x) and math.isfinite(y)):
            interrupted = True
            continue
        if interrupted:
            runs.append([])
            interrupted = False
        runs[-1].append((x, y))
    return runs


def _draw_axes(axes: _Axes, chart: Chart) -> Iterator[Html]:
    left = axes.x.start
    right = axes.x.end
    bottom = axes.y.start
    for tick in axes.y.ticks:
        y = axes.y(tick)
        yield Html(f'<line class="grid" x1="{left}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        yield svg_text(left - 8, y + 4, axes.y.tick_label(tick), "end")
    for tick in axes.x.ticks:
        x = axes.x(tick)
        ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"'
        yield Html(f'<line class="axis" {ends}/>')
        yield svg_text(x, bottom + 18, axes.x.tick_label(tick), "middle")
    yield Html(f'<line class="axis" x1="{left}" x2="{right:.1f}" y1="{bottom}" y2="{bottom}"/>')
    yield svg_text((left + right) / 2, _HEIGHT - 6, chart.x_label, "middle")
    yield svg_text(2, 12, chart.y_label, "start")


def _line(axes: _Axes, index: int, series: Series) -> Html:
    """Return the band, the line and the markers of one series."""
    colour = colour_of(index, series)
    parts = []

    # The outline of the band runs along its lower edge and back along its upper edge.
    lower: list[_Point] = []
    upper: list[_Point] = []
    for x, low, high in zip(series.x, series.low, series.high):
        if math.isfinite(x) and math.isfinite(low) and math.isfinite(high):
            lower.append((x, low))
            upper.append((x, high))
    if len(lower) > 1:
        outline = axes.pixels(lower + upper[::-1])
        parts.append(f'<polygon class="band" style="fill:{colour}" points="{outline}"/>')

    css_class = "line" + " dashed" * series.dashed + " bold" * series.bold
    runs = series.runs()
    for run in runs:
        points = axes.pixels(run)
        parts.append(f'<polyline class="{css_class}" style="stroke:{colour}" points="{points}"/>')
    if len(series.x) <= _MAX_MARKERS:
        for run in runs:
            for x, y in run:
                tooltip = f"{series.name}: {y:.4g} at {x:.4g}"
                parts.append(marker((axes.x(x), axes.y(y)), tooltip, colour))
    return join(Html(part) for part in parts)


def marker(point: _Point, tooltip: str, colour: str) -> Html:
    """Return a dot at a point in pixels.

    A larger invisible disc on top of it is easy to point at and then shows the tooltip.
    """
    centre = f'cx="{point[0]:.1f}" cy="{point[1]:.1f}"'
    disc = f'<circle class="hit" {centre} r="9"><title>{escape(tooltip)}</title></circle>'
    return Html(f'<circle class="dot" style="fill:{colour}" {centre} r="3.6"/>{disc}')


def _names(axes: _Axes, lines: dict[int, Series]) -> Iterator[Html]:
    """Yield the name of each line at the right of the chart, at the height of its end.

    There a name lies on no line, also not on one that is longer than its own. Names that would
    overlap are moved apart.
    """
    ends = {index: line.runs()[-1][-1] for index, line in lines.items()}
    top_to_bottom = sorted(ends, key=lambda index: axes.y(ends[index][1]))
    # The lowest position of a name that leaves room for all the following names below it.
    lowest = axes.y.start - _NAME_HEIGHT * (len(lines) - 1)
    y = _TOP - _NAME_HEIGHT
    for index in top_to_bottom:
        _, end_y = ends[index]
        y = max(y + _NAME_HEIGHT, min(axes.y(end_y), lowest))
        lowest += _NAME_HEIGHT
        attributes = f'class="name" style="fill:{colour_of(index, lines[index])}"'
        yield svg_text(axes.x.end + 8, y + 4, lines[index].name, "start", attributes)


def _name_width(lines: Iterable[Series]) -> float:
    """Return the pixels that the longest name needs, in bold letters of size 12."""
    widths = []
    for line in lines:
        num_wide_letters = sum(letter in "mMW" for letter in line.name)
        widths.append(8 * len(line.name) + 4 * num_wide_letters)
    return 14 + max(widths)


def svg_text(x: float, y: float, content: str, anchor: str, attributes: str = "") -> Html:
    position = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return Html(f"<text {position} {attributes}>{escape(content)}</text>")


def line_colour(index: int) -> str:
    """Return the colour of a line, which is the same in every chart of a page."""
    return f"var(--s{index % _NUM_COLOURS})"


def colour_of(index: int, series: Series) -> str:
    """Return the colour of the line at position ``index`` of a chart."""
    return line_colour(index if series.colour is None else series.colour)


def _swatch(index: int, series: Series) -> str:
    """Return the background of the sign of a line in a legend, which shows if it is dashed."""
    colour = colour_of(index, series)
    if not series.dashed:
        return colour
    return f"repeating-linear-gradient(90deg, {colour} 0 3px, transparent 3px 5px)"


def numbered(content: Html, caption: str) -> Html:
    """Return a figure that the style sheet numbers."""
    caption_element = f"<figcaption>{escape(caption)}</figcaption>"
    return Html(f'<figure class="numbered">{content}{caption_element}</figure>')
