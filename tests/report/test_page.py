"""Every building block of a page escapes its text, has balanced tags, and formats numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from groupdetr.report.page import (
    CaptionedImage,
    Cell,
    Column,
    Tile,
    facts,
    gallery,
    link,
    number,
    page,
    paragraph,
    prose,
    section,
    strips,
    swatches,
    table,
    tiles,
)

from .checks import assert_self_contained, parse

HOSTILE = '<script>alert(\'x\')</script> " onload="x" & </style> </table> <img src=http://evil/x>'


def page_of(text: str) -> str:
    """Return a page with every building block, in which all text is ``text``."""
    image = CaptionedImage(Image.new("RGBA", (8, 6)), text, text)
    parts = [
        tiles([Tile(text, text, text, text), Tile("AP", "1.0", strong=True)]),
        prose(text, text),
        paragraph(link(text, "https://arxiv.org/abs/2207.13085")),
        table([Column(text), Column(text, 1, "max")], [[text, 1.0], [text, math.nan]], text),
        table([Column(text), Column(text, 1, "max")], []),
        facts({text: text}),
        strips([[image, image]]),
        gallery([image]),
        swatches([("red", text)]),
    ]
    return page(text, text, text, [section(text, *parts)], text)


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=40))
def test_any_text_makes_a_valid_page(text: str) -> None:
    assert_self_contained(page_of(text))


def test_hostile_text_is_escaped() -> None:
    html = page_of(HOSTILE)
    assert_self_contained(html)
    assert "<script" not in html
    assert sum(HOSTILE in text for text in parse(html).texts) > 10


def test_numbers_are_formatted() -> None:
    values: list[tuple[float | str | None, int, str]] = [
        (1234.56, 1, "1,234.6"),
        (-0.25, 1, "−0.2"),
        (7, 0, "7"),
        (math.nan, 1, "–"),
        (math.inf, 0, "–"),
        (None, 0, "–"),
        ("K = 8", 0, "K = 8"),
        ("a < b", 0, "a &lt; b"),
    ]
    for value, digits, expected in values:
        assert number(value, digits) == expected


def test_the_best_number_is_highlighted_if_numbers_differ() -> None:
    columns = [Column("K"), Column("AP", 1, "max"), Column("s", 0, "min"), Column("MB", 0)]
    html = table(columns, [["1", 10.0, 60, 7], ["8", 12.0, 90, 9], ["9", math.nan, 70, None]])
    assert html.count('class="n best"') == 2
    assert '<td class="n best">12.0</td>' in html
    assert '<td class="n best">60</td>' in html
    assert "best" not in table(columns, [["1", 10.0, 60, 7]])


@pytest.mark.parametrize("rows", [[["only one"]], [["a", 1, 2]], [["a", 1], ["b"]]])
def test_rows_must_have_a_cell_for_each_column(rows: list[list[Cell]]) -> None:
    with pytest.raises(ValueError, match="one cell for each column"):
        table([Column("a"), Column("b")], rows)
