"""A chart of dots draws whatever trainings reach: the same, nothing, one seed or many."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from groupdetr.report.dots import Row, dot_chart

from .checks import numbers_in_svg, parsed

NAN = math.nan


def drawn(*rows: Row) -> str:
    html = dot_chart("AP <b>", "AP", rows, "caption")
    parsed(html)
    assert all(map(math.isfinite, numbers_in_svg(html)))
    return html


def test_a_row_has_a_dot_for_every_seed_and_a_bar_at_their_mean() -> None:
    html = drawn(Row("none", [1, 2, 6]), Row("both", [4, 5, 6]))
    assert html.count('class="dot"') == 6
    assert html.count("<rect") == 2
    assert "none: 6.0" in html, "to point at"
    assert 'aria-label="AP &lt;b&gt;: none 3.0, both 5.0"' in html, "to be read out"


def test_what_is_undefined_is_left_out() -> None:
    html = drawn(Row("none", [NAN, NAN]), Row("both", [NAN, 5.0]))
    assert html.count('class="dot"') == 1
    assert "none –, both 5.0" in html


def test_nothing_to_draw_is_said() -> None:
    for html in (drawn(), drawn(Row("none", []))):
        assert "no data" in html
        assert "<svg" not in html


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-1e12, 1e12) | st.just(NAN), max_size=4), max_size=5))
def test_any_numbers(values: list[list[float]]) -> None:
    drawn(*(Row("any", row) for row in values))
