"""A JSON array that is written item by item."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from groupdetr.files.json_array import JsonArrayFile

ITEMS = [{"file": 'a "quoted"\nname ü', "boxes": [[1.5, 2], []]}, [], 7, None]


@pytest.mark.parametrize("items", [[], ITEMS[:1], ITEMS])
def test_it_is_the_file_that_json_dumps_writes(items: list[object], tmp_path: Path) -> None:
    array = JsonArrayFile(tmp_path / "a.json")
    for item in items:
        array.append(item)
    assert not (tmp_path / "a.json").exists()
    array.close()
    assert (tmp_path / "a.json").read_text() == json.dumps(items, indent=1) + "\n"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_discarded_one_leaves_the_former_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("former")
    array = JsonArrayFile(tmp_path / "a.json")
    array.append(1)
    array.discard()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["former"]
