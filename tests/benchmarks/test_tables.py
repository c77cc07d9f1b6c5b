"""The measured figures of the README files are those of the files that the command wrote."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from typing import Any

import pytest

from tests.benchmarks.conftest import BENCHMARKS

ROOT = BENCHMARKS.parent


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return import_module("tables")


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md"])
def test_the_tables_of_pages_are_what_the_command_wrote(tables: Any, page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tables.MARKED.search(text), "this page has no measured table"
    assert tables.updated(text) == text, "run: python -m benchmarks tables"


def test_results_do_not_tell_where_files_are_on_the_machine(tables: Any) -> None:
    files = sorted(tables.RESULTS.glob("*.json"))
    assert files
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"[\s\"'=]/\w", text), file.name


def test_a_headline_without_its_peer_is_left_out(tables: Any) -> None:
    environment = {"date": "2026-11-29", "processor": "P", "packages": {"torch": "2.14.1"}}
    # There was no checkout of LW-DETR, so the column "over LW-DETR" is missing.
    rows = {"100 + 100 objects, ours": {"over rfdetr": 2.34}}
    part = {"quick": True, "device": "cpu", "environment": environment, "results": rows}
    table, _, origin = tables.headlines({"criterion": part}).partition("\n\n")
    lines = table.splitlines()
    figures = [line for line in lines if "100 + 100" in line]
    assert len(figures) == 1
    assert figures[0].endswith("compared with rfdetr's | 2.3 times as fast (quick) |")
    words = " ".join(origin.split())
    assert words.startswith(
        "`python -m benchmarks all`, 2026-11-29: one thread of P, torch 2.14.1. Q"
    )
