"""A validation pass has the detections of plain inference and measures the matching."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from groupdetr.cli.main import main
from groupdetr.detectors.mask2former import Mask2Former
from groupdetr.detectors.petr import PETR, PETRv2
from groupdetr.detectors.recipe import Recipe
from groupdetr.detectors.rf_detr_seg import RFDETRSeg
from groupdetr.detectors.tiny import TinyConditionalDETR
from groupdetr.engine.accelerator import create_accelerator
from groupdetr.engine.inference import run_inference
from groupdetr.engine.matching_instability import ValidationPass
from groupdetr.engine.task import Task
from groupdetr.settings import Settings
from groupdetr.structures.detections import Detections
from groupdetr.structures.detections3d import Detections3D
from groupdetr.tasks.detection2d.instance_segmentation import BoxAndMaskTask, InstanceTask
from groupdetr.tasks.detection2d.report import report
from groupdetr.tasks.detection2d.task import DetectionTask
from groupdetr.tasks.detection3d.task import Detection3DTask, TwoFrameTask
from groupdetr.tasks.input_shape import input_shape
from groupdetr.workflows.task_workflows import WORKFLOWS
from tests.claims.detectors import DETECTORS_2D, DETECTORS_3D, build
from tests.runs import evaluations, load_checkpoint, train

SMALL: dict[str, Any] = {
    "num_classes": 3,
    "num_groups": 3,
    "num_queries": 6,
    "channels": 32,
    "num_heads": 2,
    "dim_feedforward": 48,
}
# The synthetic nuScenes dataset has ten classes.
RECIPES_3D = {name: recipe.with_options(num_classes=10) for name, recipe in DETECTORS_3D.items()}
RECIPES = DETECTORS_2D | RECIPES_3D
TaskClass = type[DetectionTask] | type[Detection3DTask]
# PETRv2 is a subclass of PETR, so it comes first.
TASKS: dict[type[Recipe], TaskClass] = {
    Mask2Former: InstanceTask,
    RFDETRSeg: BoxAndMaskTask,
    PETRv2: TwoFrameTask,
    PETR: Detection3DTask,
}


def task_class_of(recipe: Recipe) -> TaskClass:
    """Return the task that a detector is trained for."""
    for family, task_class in TASKS.items():
        if isinstance(recipe, family):
            return task_class
    return DetectionTask


TaskOf = Callable[[Recipe], Task]


@pytest.fixture(scope="module")
def task_of(shapes: Path, scenes: Path) -> TaskOf:
    """The task that a detector is trained for, with images that its network accepts."""
    datasets: dict[TaskClass, Any] = {}

    def create(recipe: Recipe) -> Task:
        task_class = task_class_of(recipe)
        if task_class not in datasets:
            data = scenes if issubclass(task_class, Detection3DTask) else shapes
            datasets[task_class] = task_class.read(data, None)
        settings = Settings(imgsz=48, augment="none")
        return task_class(datasets[task_class], settings, 10, shape=input_shape(recipe))

    return create


def validation_pass(recipe: Recipe, task: Task, measured: int = 500) -> ValidationPass:
    accelerator = create_accelerator(Settings(device="cpu"))
    return ValidationPass(build(recipe), recipe.criterion(), task, accelerator, measured)


def assert_detections_of_inference(
    detections: Sequence[Detections | Detections3D], evaluation: ValidationPass
) -> None:
    """Assert that the detections are those of plain inference."""
    expected = run_inference(
        evaluation.model, evaluation.task, evaluation.accelerator, batch_size=2, workers=0
    )
    for image_detections, image_expected in zip(detections, expected, strict=True):
        torch.testing.assert_close(image_detections.scores, image_expected.scores)
        torch.testing.assert_close(image_detections.boxes, image_expected.boxes)


# (detector, inference group, measured images): a batch has two images, so of three measured ones
# the second batch is measured in part.
# Each task, and learned queries, proposals and denoising; the others are for `-m slow`.
IN_CI = ("conditional-detr", "dino", "mask2former", "rf-detr-seg", "petr", "petrv2")
EVERY_DETECTOR = [
    pytest.param(recipe, id=name, marks=() if name in IN_CI else pytest.mark.slow)
    for name, recipe in RECIPES.items()
]
PASSES = [
    *(pytest.param(*case.values, 2, 3, id=case.id, marks=case.marks) for case in EVERY_DETECTOR),
    pytest.param(RECIPES["dino"], 0, 500, id="all images"),
    pytest.param(RECIPES["dino"], 0, 0, id="no image"),
    pytest.param(RECIPES["dino"], None, 3, id="inference with all groups"),
]


@pytest.mark.parametrize(("recipe", "group", "measured"), PASSES)
def test_a_validation_pass_has_the_detections_of_plain_inference(
    recipe: Recipe, task_of: TaskOf, group: int | None, measured: int
) -> None:
    task = task_of(recipe)
    evaluation = validation_pass(recipe.with_options(inference_group=group), task, measured)
    detections, matched = evaluation.run(batch_size=2, workers=0)
    assert_detections_of_inference(detections, evaluation)
    assert evaluation.model.queries.inference_group == group
    num_measured = 0 if matched is None else len(matched)
    assert num_measured == min(measured, len(task.val))


@pytest.mark.parametrize("recipe", EVERY_DETECTOR)
def test_every_group_is_matched_as_if_it_ran_alone(recipe: Recipe, task_of: TaskOf) -> None:
    task = task_of(recipe)
    _, of_all_groups = validation_pass(recipe, task).run(batch_size=4, workers=0)
    assert of_all_groups is not None
    different = {group.numpy().tobytes() for group in of_all_groups.unbind(1)}
    assert len(different) > 1, "groups are matched differently"
    for group in range(recipe.num_groups):
        evaluation = validation_pass(recipe.with_options(inference_group=group), task)
        evaluation.measures_all_groups = False
        _, of_one_group = evaluation.run(batch_size=4, workers=0)
        assert of_one_group is not None
        assert torch.equal(of_one_group, of_all_groups[:, group : group + 1])


def test_if_groups_attend_to_each_other_only_the_inference_group_is_measured(
    task_of: TaskOf,
) -> None:
    """Table 7 (c): its detections would change if the other groups ran too."""
    recipe = TinyConditionalDETR(**SMALL, group_attention="attend_across_groups", inference_group=1)
    evaluation = validation_pass(recipe, task_of(recipe))
    detections, matched = evaluation.run(batch_size=4, workers=0)
    assert_detections_of_inference(detections, evaluation)
    assert matched is not None
    assert matched.shape == (6, 1, 6)
    metrics = evaluation.instability(matched, matched)
    assert metrics["instability"] == 0
    assert math.isnan(metrics["instability_groups"])


def test_an_object_may_match_several_queries_of_a_group(task_of: TaskOf) -> None:
    """Table 7 (b): every object matches K queries, of any groups."""
    recipe = TinyConditionalDETR(
        **SMALL,
        group_attention="attend_across_groups",
        match="match_naively",
        inference_group=None,
    )
    task = task_of(recipe)
    _, matched = validation_pass(recipe, task).run(batch_size=4, workers=0)
    assert matched is not None
    num_objects = [len(task.val[index][1]) for index in range(len(task.val))]
    num_matched = (matched >= 0).sum((1, 2)).tolist()
    assert num_matched == [3 * count for count in num_objects]


def test_the_metrics_are_the_instability_of_the_inference_group_and_the_mean_of_all_groups(
    task_of: TaskOf,
) -> None:
    recipe = TinyConditionalDETR(**SMALL, group_attention="attend_across_groups", inference_group=2)
    evaluation = validation_pass(recipe, task_of(recipe))
    evaluation.measures_all_groups = True
    before = torch.from_numpy(np.tile(np.array([0, -1], np.int16), (5, 3, 1)))
    now = before.clone()
    now[:, 2] = now[:, 2].flip(-1)
    assert evaluation.instability(now, before) == {
        "instability": 2,
        "instability_groups": pytest.approx(2 / 3),
    }


# in a training


def instability_metrics(run: Path) -> list[tuple[float | None, float | None]]:
    """Return the instability of the inference group and of all groups, for every evaluation."""
    return [(record["instability"], record["instability_groups"]) for record in evaluations(run)]


@pytest.mark.parametrize(
    ("name", "rate", "maximum"),
    [
        # Twice the largest number of objects in an image.
        ("conditional-detr-tiny", "1e-2", 2 * 3),
        # The number of queries. An epoch is a single step, so the rate is high.
        ("petr-tiny", "1e-1", 8),
    ],
)
def test_every_evaluation_but_the_first_has_an_instability(
    name: str, rate: str, maximum: int, data_for: Callable[[str], Path], tmp_path: Path
) -> None:
    run = train(data_for(name), tmp_path / "run", "--model", name, "--epochs", "3", "--lr", rate)
    first, *others = instability_metrics(run)
    assert first == (None, None)
    assert len(others) == 2
    for primary, mean in others:
        assert primary is not None
        assert mean is not None
        assert 0 < primary <= maximum
        assert 0 < mean <= maximum
    with (run / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["instability"] for row in rows] == ["", *(str(primary) for primary, _ in others)]


def test_the_page_of_a_run_on_images_shows_the_instability(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflows = replace(WORKFLOWS["images"], report=report)
    monkeypatch.setitem(WORKFLOWS, "images", workflows)
    run = train(shapes, tmp_path / "run", "--epochs", "2", "--lr", "1e-3")
    assert "Instability of the matching" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param(("--lr", "0", "--backbone-lr", "0"), (0, 0), id="0 if no weight changes"),
        pytest.param(("--instability-images", "0"), (None, None), id="none if switched off"),
    ],
)
def test_the_instability_of_the_second_evaluation(
    shapes: Path, tmp_path: Path, options: tuple[str, ...], expected: tuple[Any, Any]
) -> None:
    run = train(shapes, tmp_path / "run", "--epochs", "2", *options)
    assert instability_metrics(run)[1] == expected


@pytest.mark.parametrize(
    "evaluated", [True, False], ids=["with other images", "before any evaluation"]
)
def test_after_a_checkpoint_that_cannot_be_compared_one_instability_is_undefined(
    shapes: Path, tmp_path: Path, evaluated: bool
) -> None:
    run = train(shapes, tmp_path / "run", "--epochs", "1")
    options = ["--instability-images", "2"] if evaluated else []
    if not evaluated:
        content = load_checkpoint(run)
        content["matched"] = None
        torch.save(content, run / "weights/last.pt")
    assert main(["train", "--resume", str(run), "--epochs", "3", *options]) == 0
    is_undefined = [primary is None for primary, _ in instability_metrics(run)]
    assert is_undefined == [True, True, False]
