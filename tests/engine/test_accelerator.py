"""What is measured of the machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from groupdetr.engine.accelerator import peak_memory_mb

MIB = 2**20


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, its memory is measured")
def test_the_peak_memory_is_that_of_this_process_in_mib_and_remains() -> None:
    before = peak_memory_mb()
    in_use = psutil.Process().memory_info().rss / MIB
    assert before >= 0.9 * in_use
    # 100 MiB more than this process ever had
    size = int(before - in_use + 100) * MIB
    array = np.ones(size, dtype=np.uint8)
    del array
    assert peak_memory_mb() == pytest.approx(before + 100, abs=30)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, its memory is measured")
def test_the_peak_memory_is_measured_where_there_is_no_proc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An evaluation must not end on macOS, on BSD, or in a container without /proc."""
    expected = peak_memory_mb()
    monkeypatch.setattr("groupdetr.engine.accelerator.Path", lambda _: tmp_path / "status")
    assert peak_memory_mb() == pytest.approx(expected, rel=0.5)
