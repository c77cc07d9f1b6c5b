"""The check of every task says how many objects are lost because a group has too few queries."""

from __future__ import annotations

from pathlib import Path

import pytest

from groupdetr.detectors.dab_detr import DABDETR
from groupdetr.engine.task import Task
from groupdetr.registry import experiment
from groupdetr.tasks.registry import task_class
from groupdetr.workflows.check import check

TASKS = [
    pytest.param(task_class(experiment(name).task), id=name)
    for name in ("conditional-detr-tiny", "mask2former-tiny", "petr-tiny", "petrv2-tiny")
]


@pytest.mark.parametrize("task", TASKS)
def test_lost_objects_are_counted(task: type[Task], shapes: Path, scenes: Path) -> None:
    data = scenes if task.input_kind == "scenes" else shapes
    split = task.read(data, None).splits["train"]
    records = getattr(split, "records", split)  # images, or the samples of a nuScenes version
    counts = [len(record.trainable_objects()[1]) for record in records]
    assert max(counts) > 1
    lost = sum(max(0, count - 1) for count in counts)
    crowded = sum(count > 1 for count in counts)
    noun = "samples" if task.input_kind == "scenes" else "images"
    expected = (
        f"{crowded} of {len(counts)} {noun} have more objects than a group has queries (1), "
        f"up to {max(counts)}: {lost} of {sum(counts)} objects are lost"
    )

    # In the check before a training, and in that of `groupdetr check --queries 1`.
    for report in (task.check(data, None, 1, False), check(data, queries=1, decode=False)):
        assert expected in [finding.what for finding in report.warnings]
        assert report.verdict == "warn"
    assert "queries" not in check(data, queries=max(counts) + 50, decode=False).render()


def test_every_pattern_of_an_anchor_is_a_query() -> None:
    assert DABDETR(num_queries=30).queries_of_a_group == 30
    assert DABDETR(num_queries=30, num_patterns=3).queries_of_a_group == 90
