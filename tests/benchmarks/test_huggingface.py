"""The trainings of `benchmarks/huggingface.py`: one group, six, and one for as long as six."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.conftest import BENCHMARKS


def run(out: Path, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / "huggingface.py"), *arguments, "--out", str(out)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_groups_and_longer_trainings_have_a_row_each(shapes: Path, tmp_path: Path) -> None:
    data = ("--data", str(shapes))
    run(tmp_path, "train", "Conditional DETR", "--groups", "1", "--epochs", "1", *data)
    run(tmp_path, "train", "Conditional DETR", "--groups", "3", "--epochs", "1", *data)
    run(tmp_path, "longer", "Conditional DETR", "--groups", "3", *data)
    records = [json.loads(file.read_text()) for file in tmp_path.glob("*-seed0.json")]
    assert sorted(record["groups"] for record in records) == [1, 1, 3]
    rows = run(tmp_path, "table").splitlines()[2:]
    assert sum(row.startswith("| Conditional DETR, K = 3 | 1 |") for row in rows) == 1
