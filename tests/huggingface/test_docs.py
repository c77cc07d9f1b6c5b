"""The tables of docs/huggingface.md are those of the code, and the examples of docstrings run."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

import groupdetr.huggingface as ghf
from groupdetr.huggingface.families import FAMILIES, OWN_GROUPS, REASONS
from tests.huggingface.detectors import conditional_detr

PAGE = (Path(__file__).parents[2] / "docs/huggingface.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The rows of the first table after a line that begins so."""
    table = PAGE.split(f"\n{heading}", 1)[1].split("\n|---", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[1:]]


def test_the_page_has_every_supported_class_and_no_other() -> None:
    supported = [[family.name, f"`{family.model_class}`"] for family in (*FAMILIES, *OWN_GROUPS)]
    assert sorted(row[:2] for row in rows("## Supported families")) == sorted(supported)


def test_the_page_has_every_class_that_is_refused_with_a_reason() -> None:
    refused = [name for row in rows("These are refused") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(refused) == sorted(REASONS)


@pytest.mark.parametrize("name", ghf.__all__)
def test_the_example_of_every_function_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ghf.with_groups(conditional_detr(), num_groups=3)
    model.save_pretrained("run/checkpoint-500")
    names = {"ghf": ghf, "detector": conditional_detr(), "model": model}
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(getattr(ghf, name), name, globs=names)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
