"""The benchmarks as modules, and the code of other projects that they compare with."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Packages of the projects that benchmarks compare with. Two projects have packages of one name.
PEERS = ("models", "util", "datasets", "main", "rfdetr")
Rows = dict[str, dict[str, Any]]  # of the table: name -> column -> value


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rows]]:
    """A function that runs a benchmark with options, and returns the rows of its JSON."""
    before = set(sys.modules)
    # They are scripts: they import each other by their own names.
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])

    def run_benchmark(name: str, **options: Any) -> Rows:
        module = import_module(name)
        file = tmp_path / f"{name}.json"
        module.main(module.Options(**options, out=file))
        rows: Rows = json.loads(file.read_text(encoding="utf-8"))["results"]
        assert rows
        return rows

    yield run_benchmark
    for module_name in set(sys.modules) - before:
        is_replacement = isinstance(sys.modules[module_name], MagicMock)
        if is_replacement or module_name.split(".")[0] in PEERS:
            del sys.modules[module_name]


@pytest.fixture(scope="session")
def official() -> Path:
    """A checkout of the authors' branch GroupDETR."""
    return _folder("GROUPDETR_CONDITIONAL_DETR_REPO", "main.py", "group_detr")


@pytest.fixture(scope="session")
def lwdetr() -> Path:
    """A checkout of LW-DETR."""
    return _folder("GROUPDETR_LW_DETR_REPO", "models/lwdetr.py", "class LWDETR")


@pytest.fixture(scope="session")
def rfdetr() -> Path:
    """A folder of packages with rfdetr in it."""
    if os.environ.get("GROUPDETR_RFDETR_PACKAGES"):
        return _folder("GROUPDETR_RFDETR_PACKAGES", "rfdetr/models/criterion.py", "SetCriterion")
    spec = find_spec("rfdetr")
    if spec is None or spec.origin is None:
        pytest.skip("rfdetr is not installed, and GROUPDETR_RFDETR_PACKAGES names no folder of it")
    return Path(spec.origin).parents[1]


def _folder(variable: str, file: str, text: str) -> Path:
    """Return the folder that a variable names; skip without one whose ``file`` has ``text``."""
    folder = Path(os.environ.get(variable, "") or "missing")
    path = folder / file
    if not path.is_file() or text not in path.read_text(encoding="utf-8"):
        pytest.skip(f"{variable} does not name a folder with {file} that has {text!r}")
    return folder
