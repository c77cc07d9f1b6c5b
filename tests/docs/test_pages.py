"""The pages of the documentation: all are in the navigation, and their links lead to files."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONFIG = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
REPOSITORY = "https://github.com/groupdetr/groupdetr/blob/main/"
LINK = re.compile(r"\]\(([^)\s]+)\)")


def nav_pages(entries: list[Any]) -> Iterator[str]:
    """Yield the pages of the navigation."""
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(value, list):
            yield from nav_pages(value)
        else:
            yield value


def test_every_page_is_in_the_navigation_once() -> None:
    names = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES]
    assert sorted(nav_pages(CONFIG["nav"])) == sorted(names)


def test_links_between_pages_are_relative_and_all_others_are_complete() -> None:
    for page in PAGES:
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            if link.startswith(REPOSITORY):
                file = ROOT / link.removeprefix(REPOSITORY).partition("#")[0]
                assert file.exists(), f"{page.name}: {link}"
            elif not link.startswith(("https://", "#")):
                target = (page.parent / link.partition("#")[0]).resolve()
                assert target.is_relative_to(ROOT / "docs"), f"{page.name}: the site has no {link}"
                assert target.is_file(), f"{page.name}: {link}"
