"""A chart draws whatever a run leaves behind: gaps, one point, nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groupdetr.report.chart import Chart, Series, charts, line_chart, nice_step

from .checks import numbers_in_svg, parsed

NAN = math.nan


def drawn(*series: Series) -> str:
    html = line_chart(Chart("AP <b>", "epoch", "AP", series, "caption"))
    parsed(html)
    assert all(map(math.isfinite, numbers_in_svg(html)))
    return html


def test_a_line_has_points_a_name_and_values_to_point_at() -> None:
    html = drawn(Series("K = 8", [1, 2, 3], [10.0, 20.0, 25.0]))
    assert html.count('class="dot"') == 3
    assert "K = 8: 20 at 2" in html
    assert html.count("<polyline") == 1
    assert "AP &lt;b&gt;" in html


def test_nan_breaks_the_line() -> None:
    html = drawn(Series("loss", list(range(6)), [1, 2, NAN, 3, math.inf, 5]))
    assert html.count("<polyline") == 3
    assert html.count('class="dot"') == 4


def test_a_band_for_the_spread() -> None:
    html = drawn(Series("K = 1", [1, 2, 3], [1, 2, 3], [0, 1, NAN], [2, 3, 4]))
    assert html.count('class="band"') == 1


@pytest.mark.parametrize("series", [[], [Series("a", [], [])], [Series("a", [1, 2], [NAN, NAN])]])
def test_nothing_to_draw_is_said(series: list[Series]) -> None:
    html = drawn(*series)
    assert "no data" in html
    assert "<svg" not in html
    assert Chart("t", "x", "y", series).empty


@pytest.mark.parametrize("point", [(3, 0.2), (0, 0), (1, -5), (1e9, 1e-12)])
def test_one_point(point: tuple[float, float]) -> None:
    assert drawn(Series("K", [point[0]], [point[1]])).count('class="dot"') == 1


def test_many_names_move_to_a_legend_and_long_curves_are_thinned() -> None:
    many = [Series(f"K = {k}", range(5000), [float(k)] * 5000) for k in range(9)]
    html = drawn(*many)
    assert '<ul class="legend">' in html
    assert 'class="name"' not in html
    assert "<circle" not in html
    assert len(html) < 100_000


def test_names_of_lines_that_meet_stay_readable() -> None:
    html = drawn(*(Series(f"K = {k}", [1, 2], [0.0, 1.0]) for k in range(5)))
    heights = sorted(
        float(part.split('"')[0]) for part in html.split(' y="')[1:] if 'class="name"' in part
    )
    assert len(heights) == 5
    assert np.diff(heights).min() >= 14.9


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-1e12, 1e12) | st.just(NAN)] * 4), max_size=8))
def test_any_numbers(rows: list[tuple[float, float, float, float]]) -> None:
    columns = list(zip(*rows)) or [(), (), (), ()]
    drawn(Series("any", *columns), Series("other", [1.0], [1.0]))


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(3, 8))
def test_steps_are_round_and_few(low: float, width: float, count: int) -> None:
    step = nice_step(low, low + width, count)
    assert f"{step:e}"[0] in "125"
    if low + width > low:
        assert (low + width - low) / step <= count * 1.001


def test_charts_stand_side_by_side() -> None:
    chart = Chart("t", "x", "y", [Series("a", [1, 2], [3, 4])])
    assert charts([chart, chart]).count("<figure") == 2
