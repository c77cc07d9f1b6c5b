"""The rows of an item: equal-time baselines, and what is trained first."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from groupdetr.errors import GroupDETRError
from groupdetr.paper.plan import EqualTimeRow, Plan, Row
from groupdetr.paper.trainings import Store
from groupdetr.report.run_summary import summarize_run

from .stored import finish, training


def equal_time_row(folder: Path, epochs: float, seeds: int = 1) -> EqualTimeRow:
    rows = []
    for groups in (1, 6):
        members = tuple(training(folder, groups, epochs, seed) for seed in range(seeds))
        rows.append(Row(f"k{groups}", f"K = {groups}", members, baseline=groups == 1))
    return EqualTimeRow("longer", "K = 1, longer", rows[0], rows[1])


@pytest.mark.parametrize(
    ("epochs", "seconds", "expected"),
    [(0.2, 15.0, 0.3), (8.0, 12.0, 9.6), (8.0, 12.34, 9.9), (80.0, 15.0, 120.0), (8.0, 9.0, 8.0)],
)
def test_an_equal_time_baseline_takes_the_cpu_time_of_groups_and_is_never_shorter(
    epochs: float, seconds: float, expected: float, tmp_path: Path
) -> None:
    row = equal_time_row(tmp_path, epochs)
    store = Store(tmp_path)
    assert row.resolve(store) is None
    finish(row.base.trainings[0], store, cpu_seconds=10.0)
    assert row.resolve(store) is None
    finish(row.grouped.trainings[0], store, cpu_seconds=seconds)
    resolved = row.resolve(store)
    assert resolved is not None
    assert resolved.baseline
    assert resolved.trainings[0].epochs == pytest.approx(expected)


@pytest.mark.parametrize("environment", ['{"gpus": ["a GPU"]}', '{"device": "mps", "gpus": []}'])
def test_cpu_time_and_wall_time_are_not_compared(environment: str, tmp_path: Path) -> None:
    """Commands of a plan may run on different machines."""
    row, store = equal_time_row(tmp_path, 8.0), Store(tmp_path)
    finish(row.base.trainings[0], store)
    on_gpu = finish(row.grouped.trainings[0], store)
    on_gpu.run.environment.write_text(environment)
    with pytest.raises(GroupDETRError, match="one was trained on a CPU and the other on a GPU"):
        row.resolve(store)


def test_a_further_seed_does_not_change_the_length_of_an_equal_time_baseline(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    row = equal_time_row(tmp_path, 8.0, seeds=2)
    for seed, seconds in enumerate((15.0, 30.0)):
        finish(row.base.trainings[seed], store, cpu_seconds=10.0)
        finish(row.grouped.trainings[seed], store, cpu_seconds=seconds)
    resolved = row.resolve(store)
    assert resolved is not None
    assert [item.epochs for item in resolved.trainings] == [12.0, 12.0]


def test_trainings_are_needed_seed_by_seed_and_once(tmp_path: Path) -> None:
    row = equal_time_row(tmp_path, 8.0, seeds=2)
    plan = Plan([row.base, row, row.grouped, row.base])
    needed = [(run.training.seed, run.training.groups) for run in plan.needed(Store(tmp_path))]
    assert needed == [(0, 6), (0, 1), (1, 6), (1, 1)]
    assert plan.waiting(Store(tmp_path)) == [row]


def test_a_detector_with_groups_and_its_baseline_train_side_by_side(tmp_path: Path) -> None:
    rows = []
    for family, epochs in (("conditional-detr", 4.0), ("dab-detr", 5.0)):
        for groups in (1, 6):
            member = training(tmp_path, groups, epochs, 0)
            rows.append(
                Row(f"{family}-{groups}", "", (member,), baseline=groups == 1, family=family)
            )
    needed = Plan(rows).needed(Store(tmp_path))
    assert [(run.training.epochs, run.training.groups) for run in needed] == [
        *[(4.0, 6), (4.0, 1)],
        *[(5.0, 6), (5.0, 1)],
    ]


def test_on_a_gpu_equal_time_is_wall_time(tmp_path: Path) -> None:
    """There the CPU only waits for the most part."""
    store = Store(tmp_path)
    stored = finish(training(tmp_path), store, cpu_seconds=10.0)
    assert stored.compute_seconds() == 10
    assert summarize_run(stored.run).cpu_seconds == 10
    stored.run.environment.write_text('{"gpus": ["a GPU"]}')
    assert stored.compute_seconds() == 30
    assert math.isnan(summarize_run(stored.run).cpu_seconds)


def test_the_peak_memory_of_a_resumed_run_is_that_of_the_greatest_of_its_processes(
    tmp_path: Path,
) -> None:
    stored = finish(training(tmp_path), Store(tmp_path))
    last = stored.run.evaluations()[-1]
    stored.run.append(last | {"peak_memory_mb": 40.0})
    assert summarize_run(stored.run).peak_memory_mb == 100
