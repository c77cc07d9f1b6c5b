"""A line chart can be drawn from the curves of any run: with gaps, one point, or no data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groupdetr.report.chart import Chart, Series, line_chart, nice_step

from .checks import numbers_in_svg, parse

NAN = math.nan


def render(*series: Series) -> str:
    """Render a chart and check that all its coordinates are finite."""
    html = line_chart(Chart("AP <b>", "epoch", "AP", series, "caption"))
    parse(html)
    assert all(math.isfinite(number) for number in numbers_in_svg(html))
    return html


def test_a_line_has_markers_a_name_and_tooltips() -> None:
    html = render(Series("K = 8", [1, 2, 3], [10.0, 20.0, 25.0]))
    assert html.count('class="dot"') == 3
    assert "K = 8: 20 at 2" in html
    assert html.count("<polyline") == 1
    assert "AP &lt;b&gt;" in html


def test_nan_interrupts_the_line() -> None:
    html = render(Series("loss", list(range(6)), [1, 2, NAN, 3, math.inf, 5]))
    assert html.count("<polyline") == 3
    assert html.count('class="dot"') == 4


@pytest.mark.parametrize("series", [[], [Series("a", [], [])], [Series("a", [1, 2], [NAN, NAN])]])
def test_a_chart_without_data_says_no_data(series: list[Series]) -> None:
    html = render(*series)
    assert "no data" in html
    assert "<svg" not in html
    assert Chart("t", "x", "y", series).empty


@pytest.mark.parametrize("point", [(0, 0), (1e9, 1e-12)])
def test_a_single_point_has_a_marker(point: tuple[float, float]) -> None:
    assert render(Series("K", [point[0]], [point[1]])).count('class="dot"') == 1


def test_many_names_move_to_a_legend_and_long_curves_are_thinned() -> None:
    lines = [Series(f"K = {k}", range(5000), [float(k)] * 5000) for k in range(9)]
    html = render(*lines)
    assert '<ul class="legend">' in html
    assert 'class="name"' not in html
    assert "<circle" not in html
    assert len(html) < 100_000


def test_a_thinned_line_keeps_its_last_point() -> None:
    thinned = Series("loss", range(1001), range(1001)).thinned()
    assert len(thinned.x) <= 400
    assert (thinned.x[-1], thinned.y[-1]) == (1000, 1000)


def test_names_of_lines_with_the_same_end_do_not_overlap() -> None:
    html = render(*(Series(f"K = {k}", [1, 2], [0.0, 1.0]) for k in range(5)))
    positions = []
    for part in html.split(' y="')[1:]:
        if 'class="name"' in part:
            positions.append(float(part.split('"')[0]))
    assert len(positions) == 5
    assert np.diff(sorted(positions)).min() >= 14.9


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-1e12, 1e12) | st.just(NAN)] * 4), max_size=8))
def test_any_numbers_can_be_drawn(rows: list[tuple[float, float, float, float]]) -> None:
    columns = list(zip(*rows)) or [(), (), (), ()]
    render(Series("any", *columns), Series("other", [1.0], [1.0]))


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(3, 8))
def test_steps_between_ticks_are_round_and_few(low: float, width: float, count: int) -> None:
    step = nice_step(low, low + width, count)
    assert f"{step:e}"[0] in "125"
    if low + width > low:
        assert (low + width - low) / step <= count * 1.001
