"""The vocabulary: everything is escaped, balanced, and printed as a reader expects it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from groupdetr.report.page import (
    Cell,
    Column,
    Picture,
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

from .checks import assert_self_contained, parsed

HOSTILE = '<script>alert(\'x\')</script> " onload="x" & </style> </table> <img src=http://evil/x>'


def everything(words: str) -> str:
    """A page with every word of the vocabulary."""
    picture = Picture(Image.new("RGBA", (8, 6)), words, words)
    parts = [
        tiles([Tile(words, words, words, words), Tile("AP", "1.0", strong=True)]),
        prose(words, words),
        paragraph(link(words, "https://arxiv.org/abs/2207.13085")),
        table([Column(words), Column(words, 1, "max")], [[words, 1.0], [words, math.nan]], words),
        facts({words: words}),
        strips([[picture, picture]]),
        gallery([picture]),
        swatches([("red", words)]),
    ]
    return page(words, words, words, [section(words, *parts)], words)


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=40))
def test_any_words_make_a_page(words: str) -> None:
    assert_self_contained(everything(words))


def test_hostile_words_are_words() -> None:
    html = everything(HOSTILE)
    assert_self_contained(html)
    assert "<script" not in html
    assert sum(HOSTILE in words for words in parsed(html).words) > 10


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        *(
            (1234.56, 1, "1,234.6"),
            (-0.25, 1, "−0.2"),
            (7, 0, "7"),
            (math.nan, 1, "–"),
            (math.inf, 0, "–"),
        ),
        *((None, 0, "–"), ("K = 8", 0, "K = 8"), ("a < b", 0, "a &lt; b")),
    ],
)
def test_numbers(value: float | str | None, digits: int, shown: str) -> None:
    assert number(value, digits) == shown


def test_the_best_is_marked_where_there_is_a_choice() -> None:
    columns = [Column("K"), Column("AP", 1, "max"), Column("s", 0, "min"), Column("MB", 0)]
    html = table(columns, [["1", 10.0, 60, 7], ["8", 12.0, 90, 9], ["9", math.nan, 70, None]])
    assert html.count('class="n best"') == 2
    assert '<td class="n best">12.0</td>' in html
    assert '<td class="n best">60</td>' in html
    assert "best" not in table(columns, [["1", 10.0, 60, 7]])


@pytest.mark.parametrize("rows", [[["only one"]], [["a", 1, 2]], [["a", 1], ["b"]]])
def test_rows_must_fit_the_columns(rows: list[list[Cell]]) -> None:
    with pytest.raises(ValueError):
        table([Column("a"), Column("b")], rows)


def test_a_table_may_be_empty() -> None:
    parsed(table([Column("a"), Column("b", 1, "max")], []))
