"""One pass over the val pictures finds what a plain one does, and sees the matching of every group besides."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from groupdetr.cli.main import main
from groupdetr.detectors.mask2former import Mask2Former
from groupdetr.detectors.petr import PETR, PETRv2
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.accelerator import accelerator
from groupdetr.engine.inference import find
from groupdetr.engine.matching_instability import Examination
from groupdetr.engine.task import Task
from groupdetr.experiments import TinyJointGroups, TinyNaiveOneToMany
from groupdetr.settings import Settings
from groupdetr.structures.detections import Detections
from groupdetr.tasks.detection2d.instance_segmentation import InstanceTask
from groupdetr.tasks.detection2d.task import DetectionTask
from groupdetr.tasks.detection3d.task import Detection3DTask, Found, TwoFrameTask
from tests.claims.detectors import FLAT, SPACE, build
from tests.runs import checkpoint, evaluations, train

SMALL: dict[str, Any] = {
    "num_classes": 3,
    "num_groups": 3,
    "num_queries": 6,
    "channels": 32,
    "num_heads": 2,
    "hidden": 48,
}
RECIPES = FLAT | {name: recipe.with_options(num_classes=10) for name, recipe in SPACE.items()}
Kind = type[DetectionTask] | type[Detection3DTask]
KINDS: dict[type[Recipe], Kind] = {
    Mask2Former: InstanceTask,
    PETRv2: TwoFrameTask,
    PETR: Detection3DTask,
}


@pytest.fixture(scope="module")
def tasks(shapes: Path, scenes: Path) -> dict[Kind, Task]:
    def task(kind: Kind) -> Task:
        data: Any = kind.read(scenes if issubclass(kind, Detection3DTask) else shapes, None)
        return kind(data, Settings(imgsz=48, augment="none"), 10)

    return {kind: task(kind) for kind in (DetectionTask, *KINDS.values())}


@pytest.fixture
def task(request: pytest.FixtureRequest, tasks: dict[Kind, Task]) -> Task:
    """That of the test's detector."""
    callspec = getattr(request.node, "callspec", None)
    recipe = callspec.params.get("recipe") if callspec else None
    return tasks[
        next((kind for family, kind in KINDS.items() if isinstance(recipe, family)), DetectionTask)
    ]


def examine(recipe: Recipe, task: Task, measured: int = 500) -> Examination:
    return Examination(
        build(recipe), recipe.criterion(), task, accelerator(Settings(device="cpu")), measured
    )


def assert_same(found: list[Detections | Found], expected: list[Detections | Found]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.scores, other.scores)
        torch.testing.assert_close(one.boxes, other.boxes)


@pytest.mark.parametrize(
    "measured", [500, 3, 0], ids=["all measured", "three measured", "none measured"]
)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("group", [0, 2, None])
def test_the_answer_is_that_of_a_plain_pass(
    recipe: Recipe, task: Task, group: int | None, measured: int
) -> None:
    """Pictures come two at a time, so one batch is measured in part."""
    examination = examine(recipe.with_options(inference_group=group), task, measured)
    found, objects = examination.run(2, 0)
    assert_same(found, find(examination.model, task, examination.accelerator, 2, 0))
    assert examination.model.queries.inference_group == group
    assert (0 if objects is None else len(objects)) == min(measured, len(task.val))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_group_is_matched_as_if_it_were_alone(recipe: Recipe, task: Task) -> None:
    _, together = examine(recipe, task).run(4, 0)
    assert together is not None
    assert len({group.numpy().tobytes() for group in together.unbind(1)}) > 1
    for group in range(recipe.num_groups):
        alone = examine(recipe.with_options(inference_group=group), task)
        alone.all_groups = False
        _, objects = alone.run(4, 0)
        assert objects is not None
        assert torch.equal(objects, together[:, group : group + 1])


def test_where_groups_attend_to_each_other_the_one_that_answers_is_measured_alone(
    task: Task,
) -> None:
    """Table 7 (c): with the others beside it, it would answer otherwise."""
    examination = examine(TinyJointGroups(**SMALL, inference_group=1), task)
    found, objects = examination.run(4, 0)
    assert_same(found, find(examination.model, task, examination.accelerator, 4, 0))
    assert objects is not None
    assert objects.shape == (6, 1, 6)
    scores = examination.instability(objects, objects)
    assert scores["instability"] == 0
    assert math.isnan(scores["instability_groups"])


def test_an_object_may_have_several_queries_of_a_group(task: Task) -> None:
    """Table 7 (b): every object is matched K times, wherever."""
    examination = examine(TinyNaiveOneToMany(**SMALL, inference_group=None), task)
    _, objects = examination.run(4, 0)
    assert objects is not None
    counts = [3 * len(task.val[i][1]) for i in range(len(task.val))]
    assert (objects >= 0).sum((1, 2)).tolist() == counts


def test_scores_are_of_the_group_that_answers_and_of_all(task: Task) -> None:
    examination = examine(TinyJointGroups(**SMALL, inference_group=2), task)
    examination.all_groups = True
    before = torch.from_numpy(np.tile(np.array([0, -1], np.int16), (5, 3, 1)))
    now = before.clone()
    now[:, 2] = now[:, 2].flip(-1)
    assert examination.instability(now, before) == {
        "instability": 2,
        "instability_groups": pytest.approx(2 / 3),
    }


# in a training


def scores(run: Path) -> list[tuple[Any, Any]]:
    return [(record["instability"], record["instability_groups"]) for record in evaluations(run)]


@pytest.mark.parametrize(
    ("name", "rate", "most"),
    [
        ("conditional-detr-tiny", "1e-3", 2 * 3),  # twice as many as a picture has objects at most
        ("petr-tiny", "1e-1", 8),  # as many as there are queries; an epoch is a single step
    ],
)
def test_every_evaluation_but_the_first_says_how_stable_the_matching_is(
    name: str, rate: str, most: int, data_for: Callable[[str], Path], tmp_path: Path
) -> None:
    run = train(data_for(name), tmp_path / "run", "--model", name, "--epochs", "3", "--lr", rate)
    first, *others = scores(run)
    assert first == (None, None)
    assert len(others) == 2
    assert all(0 < score <= most for pair in others for score in pair)
    with (run / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["instability"] for row in rows] == ["", *(str(one) for one, _ in others)]


def test_the_page_of_a_training_on_pictures_draws_it(shapes: Path, tmp_path: Path) -> None:
    run = train(shapes, tmp_path / "run", "--epochs", "2", "--lr", "1e-3")
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


@pytest.mark.parametrize(
    "older", [False, True], ids=["of other pictures", "written before there was a score"]
)
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
