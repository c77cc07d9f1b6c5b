"""A dot chart can be drawn from any results: equal ones, none, one seed or many."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from groupdetr.report.dots import DotRow, dot_chart

from .checks import numbers_in_svg, parse

NAN = math.nan


def render(*rows: DotRow) -> str:
    """Render a chart and check that all its coordinates are finite."""
    html = dot_chart("AP <b>", "AP", rows, "caption")
    parse(html)
    assert all(math.isfinite(number) for number in numbers_in_svg(html))
    return html


def test_a_row_has_a_dot_for_every_seed_and_a_bar_at_their_mean() -> None:
    html = render(DotRow("none", [1, 2, 6]), DotRow("both", [4, 5, 6]))
    assert html.count('class="dot"') == 6
    assert html.count("<rect") == 2
    assert "none: 6.0" in html, "the tooltip"
    assert 'aria-label="AP &lt;b&gt;: none 3.0, both 5.0"' in html, "the text for screen readers"


def test_values_that_are_not_finite_are_left_out() -> None:
    html = render(DotRow("none", [NAN, NAN]), DotRow("both", [NAN, 5.0]))
    assert html.count('class="dot"') == 1
    assert "none –, both 5.0" in html


def test_a_chart_without_data_says_no_data() -> None:
    for html in (render(), render(DotRow("none", []))):
        assert "no data" in html
        assert "<svg" not in html


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-1e12, 1e12) | st.just(NAN), max_size=4), max_size=5))
def test_any_numbers_can_be_drawn(values: list[list[float]]) -> None:
    render(*(DotRow("any", row) for row in values))
