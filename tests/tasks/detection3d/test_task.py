"""3D detection: training and evaluation on a synthetic nuScenes by the shared engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from groupdetr.data.nuscenes.samples import Sample
from groupdetr.data.nuscenes.synthetic import SyntheticNuScenesConfig, write
from groupdetr.data.nuscenes.version import NuScenes, load
from groupdetr.detectors.recipe import Recipe
from groupdetr.detectors.tiny import TinyPETR, TinyPETRv2
from groupdetr.engine.accelerator import create_accelerator
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.trainer import Trainer
from groupdetr.engine.training_plan import TrainingPlan
from groupdetr.errors import UsageError
from groupdetr.ops.boxes3d import encode_boxes3d
from groupdetr.settings import Settings
from groupdetr.structures.detections3d import Detections3D
from groupdetr.structures.predictions import Predictions
from groupdetr.tasks.detection3d.task import (
    Detection3DTask,
    TwoFrameTask,
    image_size,
    postprocess_boxes3d,
)

RECIPES = {"petr": TinyPETR(num_queries=12), "petrv2": TinyPETRv2(num_queries=12)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> NuScenes:
    root = tmp_path_factory.mktemp("nuscenes")
    write(SyntheticNuScenesConfig(samples=3, width=160, height=90), root)
    return load(root)


def test_image_sizes_need_no_padding() -> None:
    """PETR would attend to tokens of padding, so the width fits the stride if the height does."""
    sizes = [image_size(imgsz) for imgsz in (32, 48, 64, 288, 320, 512)]
    assert sizes == [(32, 64), (48, 128), (64, 160), (288, 704), (320, 800), (512, 1280)]


def create_task(data: NuScenes, recipe: Recipe) -> Detection3DTask:
    task_class = TwoFrameTask if isinstance(recipe, TinyPETRv2) else Detection3DTask
    return task_class(data, Settings(imgsz=64, augment="petr"), recipe.num_detections)


def annotated_as_detections(sample: Sample) -> Detections3D:
    """Return all objects with points as detections with score 1."""
    has_points = sample.truth.points > 0
    return Detections3D(
        torch.ones(has_points.sum()),
        torch.from_numpy(sample.truth.labels[has_points]),
        torch.from_numpy(sample.truth.boxes[has_points]),
    )


def test_scenes_have_the_augmentation_of_the_settings_and_not_those_of_images(
    data: NuScenes,
) -> None:
    def first_train_pixels(settings: Settings) -> torch.Tensor:
        return Detection3DTask(data, settings, 100).train[0].pixels

    unchanged = Detection3DTask.val_dataset(data.splits["train"], 64)[0].pixels
    without_augmentation = Settings(imgsz=64, augment="none")
    assert torch.equal(first_train_pixels(without_augmentation), unchanged)
    assert not torch.equal(first_train_pixels(Settings(imgsz=64, augment="petr")), unchanged)
    for settings in (Settings(augment="flip"), Settings(augment="lsj"), Settings(augment="detr")):
        with pytest.raises(UsageError, match="is for images"):
            first_train_pixels(settings)


def test_the_annotations_have_the_full_score(data: NuScenes) -> None:
    task = create_task(data, RECIPES["petr"])
    detections = [annotated_as_detections(sample) for sample in task.val.samples]
    stats = task.evaluate(detections).stats
    assert next(iter(stats)) == "NDS"
    assert stats["mAP"] == pytest.approx(1.0)
    # Attributes are derived from speeds, which are not exact.
    assert stats["NDS"] == pytest.approx(1.0, abs=0.02)


def test_detections_are_boxes_by_falling_score_within_the_bounds() -> None:
    boxes = torch.tensor(
        [
            [1.0, 2, 0, 2, 4, 1.5, 0.3, 1, 0],
            [70, 0, 0, 2, 4, 1.5, 0, 0, 0],
            [-5, 9, 1, 1, 1, 2, -2, 0, 0],
        ]
    )
    logits = torch.full((1, 3, 10), -9.0)
    logits[0, 0, 4] = 1.0
    logits[0, 1, 2] = 5.0
    logits[0, 2, 8] = 2.0
    predictions = Predictions(logits, encode_boxes3d(boxes)[None])
    (detections,) = postprocess_boxes3d(predictions, num_detections=3)
    assert detections.labels.tolist() == [8, 4], "the box at 70 m is out of bounds"
    assert detections.scores.tolist() == sorted(detections.scores.tolist(), reverse=True)
    assert torch.allclose(detections.boxes, boxes[[2, 0]], atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "chunk"),
    [
        pytest.param(RECIPES["petr"], None, id="petr, all groups"),
        pytest.param(RECIPES["petrv2"], 1, id="petrv2, one group at a time"),
    ],
)
def test_the_engine_trains_and_evaluates_it(
    recipe: Recipe, chunk: int | None, data: NuScenes, tmp_path: Path
) -> None:
    settings = Settings(
        steps=3,
        batch=2,
        lr=1e-3,
        backbone_lr=1e-3,
        eval_every=1e6,
        clip=35.0,
        workers=0,
        device="cpu",
        group_chunk=chunk,
    )
    torch.manual_seed(0)
    recipe = replace(recipe, num_groups=2)
    model, criterion = recipe.build(), recipe.criterion()
    run = RunFolder(tmp_path)
    saved: list[torch.nn.Module] = []
    plan = TrainingPlan(
        task=create_task(data, recipe),
        settings=settings,
        accelerator=create_accelerator(settings),
        run=run,
        workers=0,
        stop_after=None,
        save_best=lambda model, weights: saved.append(model),
    )
    trainer = Trainer(plan, model, criterion)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    (evaluation,) = run.evaluations()
    assert {"NDS", "mAP", "mATE", "instability"} <= evaluation.keys()
    assert np.isfinite(evaluation["NDS"])
    assert saved
    changed = []
    for name, value in model.state_dict().items():
        if not torch.equal(value, initial[name]):
            changed.append(name)
    assert any(name.startswith("backbone.") for name in changed)
    assert any(name.startswith("queries.") for name in changed)
