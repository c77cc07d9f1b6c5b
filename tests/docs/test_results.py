"""The pages about the paper have what the code says: the list of items, and measured tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from groupdetr.paper.demo import Demo
from groupdetr.paper.item import Item
from groupdetr.paper.items import HOURS_FORMULA, ITEMS, MINUTES_FORMULA, items_table
from groupdetr.paper.results import Results

ROOT = Path(__file__).parents[2]
# Both have tables of measured results.
PAGES = (ROOT / "README.md", ROOT / "docs/results.md")
REPRODUCING = (ROOT / "docs/reproducing.md").read_text(encoding="utf-8")
FILES = sorted((ROOT / "docs/results").glob("*.json"))
MARKED = re.compile(r"<!-- results: (\S+) -->\n(.*?)<!-- end of results -->", re.DOTALL)


def item_of(results: Results) -> Item:
    return Demo() if results.item == "demo" else ITEMS[results.item]


def test_the_list_of_items_is_that_of_the_code() -> None:
    marked = re.search(r"<!-- items: .*? -->\n(.*?)<!-- end of items -->", REPRODUCING, re.DOTALL)
    assert marked is not None
    assert marked.group(1) == items_table()
    words = " ".join(REPRODUCING.split())
    assert MINUTES_FORMULA in words
    assert HOURS_FORMULA in words


def test_all_results_are_on_the_page_of_results() -> None:
    shown = [name for name, _ in MARKED.findall(PAGES[1].read_text(encoding="utf-8"))]
    assert sorted(shown) == [file.stem for file in FILES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_pages_are_what_the_command_wrote(page: Path) -> None:
    """A table is marked with the name of its file in docs/results."""
    tables = MARKED.findall(page.read_text(encoding="utf-8"))
    assert tables
    for name, text in tables:
        results = Results.read(ROOT / f"docs/results/{name}.json")
        assert text.strip() == item_of(results).table(results).strip(), name
