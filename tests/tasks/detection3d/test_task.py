"""Detection in space, from pictures of a drawn nuScenes to its score, by the engine that trains all detectors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from groupdetr.data.nuscenes.samples import Sample
from groupdetr.data.nuscenes.synthetic import SyntheticConfig, write
from groupdetr.data.nuscenes.version import NuScenes, load
from groupdetr.detectors.recipe import Recipe
from groupdetr.detectors.tiny import TinyPETR, TinyPETRv2
from groupdetr.engine.accelerator import accelerator
from groupdetr.engine.progress import Silent
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.trainer import Trainer
from groupdetr.errors import UsageError
from groupdetr.modeling.group_chunks import learner
from groupdetr.ops.boxes3d import box_to_code
from groupdetr.settings import Settings
from groupdetr.structures.predictions import Predictions
from groupdetr.tasks.detection3d.task import (
    Detection3DTask,
    Found,
    TwoFrameTask,
    boxes_in_space,
    size_of,
)

RECIPES = {"petr": TinyPETR(num_queries=12), "petrv2": TinyPETRv2(num_queries=12)}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> NuScenes:
    root = tmp_path_factory.mktemp("nuscenes")
    write(SyntheticConfig(samples=3, width=160, height=90), root)
    return load(root)


@pytest.mark.parametrize(
    ("imgsz", "width"), [(32, 64), (48, 128), (64, 160), (288, 704), (320, 800), (512, 1280)]
)
def test_pictures_are_whole_tokens(imgsz: int, width: int) -> None:
    """PETR's tokens of padding would be looked at as any other: a backbone of that stride has none to add."""
    height, found = size_of(imgsz)
    assert (height, found) == (imgsz, width)
    assert abs(width / height - 2.5) <= 0.5


def task_of(samples: NuScenes, recipe: Recipe) -> Detection3DTask:
    kind = TwoFrameTask if isinstance(recipe, TinyPETRv2) else Detection3DTask
    return kind(samples, Settings(imgsz=64, augment="petr"), recipe.num_detections)


def truth(sample: Sample) -> Found:
    boxes, labels = sample.truth.boxes, sample.truth.labels
    counted = sample.truth.points > 0
    return Found(
        torch.ones(counted.sum()),
        torch.from_numpy(labels[counted]),
        torch.from_numpy(boxes[counted]),
    )


def test_scenes_are_augmented_as_settings_say_and_not_as_pictures(samples: NuScenes) -> None:
    def drawn(augment: str) -> torch.Tensor:
        return Detection3DTask(samples, Settings(imgsz=64, augment=augment), 100).train[0].pixels  # type: ignore[arg-type]

    still = Detection3DTask.seen(samples.splits["train"], 64)[0].pixels
    assert torch.equal(drawn("none"), still)
    assert not torch.equal(drawn("petr"), still)
    for pictures_only in ("flip", "lsj", "detr"):
        with pytest.raises(UsageError, match="is for pictures"):
            drawn(pictures_only)


def test_what_is_there_has_the_full_score(samples: NuScenes) -> None:
    task = task_of(samples, RECIPES["petr"])
    stats = task.evaluate([truth(sample) for sample in task.val.samples]).stats
    assert next(iter(stats)) == "NDS"
    assert stats["mAP"] == pytest.approx(1.0)
    assert stats["NDS"] == pytest.approx(1.0, abs=0.02)  # of attributes that speeds suggest


def test_answers_are_boxes_by_falling_score_within_the_space() -> None:
    boxes = torch.tensor(
        [
            [1.0, 2, 0, 2, 4, 1.5, 0.3, 1, 0],
            [70, 0, 0, 2, 4, 1.5, 0, 0, 0],
            [-5, 9, 1, 1, 1, 2, -2, 0, 0],
        ]
    )
    logits = torch.full((1, 3, 10), -9.0)
    logits[0, 0, 4], logits[0, 1, 2], logits[0, 2, 8] = 1.0, 5.0, 2.0
    (found,) = boxes_in_space(Predictions(logits, box_to_code(boxes)[None]), most=3)
    assert found.labels.tolist() == [8, 4]  # the one 70 m away is beyond
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert torch.allclose(found.boxes, boxes[[2, 0]], atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 1], ids=["all groups", "a group at a time"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_engine_trains_and_evaluates_it(
    recipe: Recipe, chunk: int | None, samples: NuScenes, tmp_path: Path
) -> None:
    settings = Settings(
        steps=3,
        batch=2,
        lr=1e-3,
        backbone_lr=1e-3,
        eval_every=1e9,
        clip=35.0,
        workers=0,
        device="cpu",
        group_chunk=chunk,
    )
    torch.manual_seed(0)
    recipe = replace(recipe, num_groups=2)
    model, criterion = recipe.build(), recipe.criterion()
    network, run = learner(model, criterion, chunk), RunFolder(tmp_path)
    saved: list[torch.nn.Module] = []
    trainer = Trainer(
        model,
        criterion,
        network,
        task_of(samples, recipe),
        settings,
        run,
        accelerator(settings),
        Silent(),
        0,
        saved.append,
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    (evaluation,) = run.evaluations()
    assert {"NDS", "mAP", "mATE", "instability"} <= evaluation.keys()
    assert np.isfinite(evaluation["NDS"])
    assert saved
    moved = [
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    ]
    assert any(name.startswith("backbone.") for name in moved)
    assert any(name.startswith("queries.") for name in moved)
