"""One pass over the val pictures finds what a plain one does, and sees the matching of every group besides."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from groupdetr.cli import main
from groupdetr.data.formats import load
from groupdetr.detections import Detections
from groupdetr.detectors.mask2former import Mask2Former
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.evaluate import find
from groupdetr.engine.machine import accelerator
from groupdetr.engine.stability import Examination
from groupdetr.experiments import TinyJointGroups, TinyNaiveOneToMany
from groupdetr.settings import Settings
from groupdetr.tasks.detection import DetectionTask
from groupdetr.tasks.instances import InstanceTask
from tests.claims.detectors import FLAT, build
from tests.runs import checkpoint, evaluations, train

SMALL: dict[str, Any] = {
    "num_classes": 3, "num_groups": 3, "num_queries": 6, "channels": 32, "num_heads": 2, "hidden": 48,
}  # fmt: skip


@pytest.fixture(scope="module")
def tasks(shapes: Path) -> dict[str, DetectionTask]:
    kinds = {"box": DetectionTask, "mask": InstanceTask}
    return {name: kind(load(shapes, masks=kind.masks), Settings(imgsz=48), 10) for name, kind in kinds.items()}


@pytest.fixture
def task(request: pytest.FixtureRequest, tasks: dict[str, DetectionTask]) -> DetectionTask:
    """That of the test's detector."""
    callspec = getattr(request.node, "callspec", None)
    recipe = callspec.params.get("recipe") if callspec else None
    return tasks["mask" if isinstance(recipe, Mask2Former) else "box"]


def examine(recipe: Recipe, task: DetectionTask, measured: int = 500) -> Examination:
    return Examination(build(recipe), recipe.criterion(), task, accelerator(Settings(device="cpu")), measured)


def assert_same(found: list[Detections], expected: list[Detections]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.scores, other.scores)
        torch.testing.assert_close(one.boxes, other.boxes)


@pytest.mark.parametrize("measured", [500, 3, 0], ids=["all measured", "three measured", "none measured"])
@pytest.mark.parametrize("recipe", FLAT.values(), ids=FLAT)
@pytest.mark.parametrize("group", [0, 2, None])
def test_the_answer_is_that_of_a_plain_pass(
    recipe: Recipe, task: DetectionTask, group: int | None, measured: int
) -> None:
    """Pictures come two at a time, so one batch is measured in part."""
    examination = examine(recipe.with_options(inference_group=group), task, measured)
    found, objects = examination.run(2, 0)
    assert_same(found, find(examination.model, task, examination.accelerator, 2, 0))
    assert examination.model.queries.inference_group == group
    assert (0 if objects is None else len(objects)) == min(measured, len(task.val))


@pytest.mark.parametrize("recipe", FLAT.values(), ids=FLAT)
def test_every_group_is_matched_as_if_it_were_alone(recipe: Recipe, task: DetectionTask) -> None:
    _, together = examine(recipe, task).run(4, 0)
    assert together is not None
    assert len({group.numpy().tobytes() for group in together.unbind(1)}) > 1
    for group in range(recipe.num_groups):
        alone = examine(recipe.with_options(inference_group=group), task)
        alone.all_groups = False
        _, objects = alone.run(4, 0)
        assert objects is not None
        assert torch.equal(objects, together[:, group : group + 1])


def test_where_groups_attend_to_each_other_the_one_that_answers_is_measured_alone(task: DetectionTask) -> None:
    """Table 7 (c): with the others beside it, it would answer otherwise."""
    examination = examine(TinyJointGroups(**SMALL, inference_group=1), task)
    found, objects = examination.run(4, 0)
    assert_same(found, find(examination.model, task, examination.accelerator, 4, 0))
    assert objects is not None
    assert objects.shape == (6, 1, 6)
    scores = examination.instability(objects, objects)
    assert scores["instability"] == 0
    assert math.isnan(scores["instability_groups"])


def test_an_object_may_have_several_queries_of_a_group(task: DetectionTask) -> None:
    """Table 7 (b): every object is matched K times, wherever."""
    examination = examine(TinyNaiveOneToMany(**SMALL, inference_group=None), task)
    _, objects = examination.run(4, 0)
    assert objects is not None
    counts = [3 * len(task.val[i][1]) for i in range(len(task.val))]
    assert (objects >= 0).sum((1, 2)).tolist() == counts


def test_scores_are_of_the_group_that_answers_and_of_all(task: DetectionTask) -> None:
    examination = examine(TinyJointGroups(**SMALL, inference_group=2), task)
    examination.all_groups = True
    before = torch.from_numpy(np.tile(np.array([0, -1], np.int16), (5, 3, 1)))
    now = before.clone()
    now[:, 2] = now[:, 2].flip(-1)
    assert examination.instability(now, before) == {"instability": 2, "instability_groups": pytest.approx(2 / 3)}


# in a training


def scores(run: Path) -> list[tuple[Any, Any]]:
    return [(record["instability"], record["instability_groups"]) for record in evaluations(run)]


def test_every_evaluation_but_the_first_says_how_stable_the_matching_is(shapes: Path, tmp_path: Path) -> None:
    run = train(shapes, tmp_path / "run", "--epochs", "3", "--lr", "1e-3")
    first, *others = scores(run)
    assert first == (None, None)
    most = 2 * 3  # twice as many as a picture has objects at most
    assert all(0 < score <= most for pair in others for score in pair)
    with (run / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["instability"] for row in rows] == ["", *(str(one) for one, _ in others)]
    assert "Instability of the matching" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "expected"),
    [(("--lr", "0", "--backbone-lr", "0"), (0, 0)), (("--instability-images", "0"), (None, None))],
    ids=["nothing changes without learning", "it can be switched off"],
)
def test_what_is_logged_at_the_second_evaluation(
    shapes: Path, tmp_path: Path, options: tuple[str, ...], expected: tuple[Any, Any]
) -> None:
    assert scores(train(shapes, tmp_path / "run", "--epochs", "2", *options))[1] == expected


@pytest.mark.parametrize("older", [False, True], ids=["of other pictures", "written before there was a score"])
def test_a_checkpoint_that_cannot_be_compared_with_leaves_one_score_undefined(
    shapes: Path, tmp_path: Path, older: bool
) -> None:
    run = train(shapes, tmp_path / "run", "--epochs", "1")
    if older:
        content = checkpoint(run)
        del content["matched"]
        torch.save(content, run / "weights/last.pt")
    options = () if older else ("--instability-images", "2")
    assert main(["train", "--resume", str(run), "--epochs", "3", *options]) == 0
    assert [one is None for one, _ in scores(run)] == [True, True, False]
