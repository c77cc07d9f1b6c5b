"""What is measured of the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from accelerate.state import PartialState

from groupdetr.engine.accelerator import (
    command_line,
    create_accelerator,
    create_single_accelerator,
    loader_workers,
    peak_memory_mb,
)
from groupdetr.errors import GroupDETRError
from groupdetr.settings import Settings

MIB = 2**20
CPU = torch.device("cpu")


def resident_mib() -> float:
    return psutil.Process().memory_info().rss / MIB


def test_the_peak_memory_is_that_of_this_process_in_mib_and_remains() -> None:
    before = peak_memory_mb(CPU)
    # About 100 MiB more than this process ever had.
    size = int(before - resident_mib() + 100) * MIB
    array = np.ones(size, dtype=np.uint8)
    peak = resident_mib()
    del array
    # The system may take pages of libraries away at any time, so the peak may be that of before.
    assert peak_memory_mb(CPU) == pytest.approx(max(before, peak), abs=30)


def test_the_peak_memory_is_measured_where_there_is_no_proc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An evaluation must not end on macOS, on BSD, or in a container without /proc.

    Such a measurement may also count the memory of the process that started this one.
    """
    resident = resident_mib()
    monkeypatch.setattr("groupdetr.engine.accelerator.Path", lambda _: tmp_path / "status")
    assert 0.5 * resident < peak_memory_mb(CPU) < psutil.virtual_memory().total / MIB


def test_the_peak_memory_of_a_training_on_the_cpu_is_not_that_of_an_idle_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CUDA is initialised by asking for the name of the GPU, which every run records."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda *_: 0)
    assert peak_memory_mb(CPU) > 0.5 * resident_mib()


@pytest.mark.parametrize("missing", [("resource",), ("resource", "psutil")])
def test_no_way_of_measuring_the_memory_is_needed(
    missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("groupdetr.engine.accelerator.Path", lambda _: tmp_path / "status")
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    assert (peak_memory_mb(CPU) > 0) == ("psutil" not in missing)


@pytest.mark.parametrize(
    ("num_cores", "training_processes", "expected"),
    [(1, 1, 0), (2, 1, 1), (64, 1, 8), (8, 2, 3), (1, 2, 0), (4, 8, 0)],
)
def test_every_spare_core_loads_images(
    num_cores: int, training_processes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groupdetr.engine.accelerator.cores", lambda: num_cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(training_processes))
    assert loader_workers(None) == expected
    assert loader_workers(5) == 5


def test_an_evaluation_computes_in_fp32_where_a_training_computes_in_bf16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def on_a_gpu(precision: str, _: bool) -> str:
        return "bf16" if precision == "auto" else precision

    monkeypatch.setattr("groupdetr.engine.accelerator.resolve_precision", on_a_gpu)
    assert create_accelerator(Settings(device="cpu")).mixed_precision == "bf16"
    assert create_single_accelerator("cpu").mixed_precision == "no"
    assert create_single_accelerator("cpu", "bf16").mixed_precision == "bf16"


@pytest.mark.parametrize("program", ["/home/me/venv/bin/groupdetr", "/src/groupdetr/__main__.py"])
def test_the_command_of_a_result_is_what_a_user_types(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no folder of the machine, because results are published with it."""
    monkeypatch.setattr(sys, "argv", [program, "train", "my data", "--groups", "3"])
    assert command_line() == "groupdetr train 'my data' --groups 3"


def test_a_cpu_computes_in_fp32_by_default() -> None:
    assert create_accelerator(Settings(device="cpu")).mixed_precision == "no"


def test_every_training_of_a_process_has_the_device_of_its_own_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Accelerate itself keeps the device of the first one. Here the machine seems to have a GPU."""
    with monkeypatch.context() as patches:
        patches.setattr("torch.cuda.is_available", lambda: False)
        for name in ("torch.backends.mps.is_available", "accelerate.state.is_mps_available"):
            patches.setattr(name, lambda *_, **__: True)
        kinds = ("cpu", "auto", "cpu")
        devices = [create_accelerator(Settings(device=kind)).device.type for kind in kinds]
    create_accelerator(Settings(device="cpu"))  # that of the other tests
    assert devices == ["cpu", "mps", "cpu"]


def test_processes_that_an_error_has_disconnected_do_not_wait_for_each_other_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    with pytest.raises(GroupDETRError, match="disconnected by an error"):
        create_accelerator(Settings(device="cpu"))
