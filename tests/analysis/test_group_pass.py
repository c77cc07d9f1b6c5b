"""One pass with all groups detects in each group what the group detects alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from groupdetr.analysis.group_pass import GroupPass, detect_groups_alone
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.detectors.tiny import TinyDNDETR
from groupdetr.engine.accelerator import create_accelerator
from groupdetr.engine.inference import run_inference, use_group
from groupdetr.settings import Settings
from groupdetr.structures.detections import Detections
from groupdetr.tasks.detection2d.task import DetectionTask
from tests.claims.detectors import SMALL, build

RECIPE = TinyDNDETR(**SMALL, num_denoising=8)


@pytest.fixture(scope="module")
def group_pass(shapes: Path) -> GroupPass[Detections]:
    task = DetectionTask(DetectionTask.read(shapes, None), Settings(imgsz=48), 10)
    return GroupPass(build(RECIPE), task, create_accelerator(Settings(device="cpu")))


def test_the_detections_are_those_of_each_group_alone_and_nothing_is_matched(
    group_pass: GroupPass[Detections], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("queries are matched")

    monkeypatch.setattr(SetCriterion, "assign", fail)
    images = group_pass.detect(batch_size=2, workers=0)
    for group in range(RECIPE.num_groups):
        with use_group(group_pass.model, group):
            alone = run_inference(group_pass.model, group_pass.task, group_pass.accelerator, 2, 0)
        for detections, expected in zip(images, alone, strict=True):
            torch.testing.assert_close(detections[group].scores, expected.scores)
            torch.testing.assert_close(detections[group].boxes, expected.boxes)


@pytest.mark.parametrize("attention", ["attend_within_groups", "attend_across_groups"])
def test_groups_that_do_not_attend_to_each_other_share_one_pass(
    attention: str, group_pass: GroupPass[Detections]
) -> None:
    model = build(RECIPE.with_options(group_attention=attention))
    passes = []
    model.backbone.register_forward_hook(lambda *_: passes.append(1))
    others = (group_pass.task, group_pass.accelerator)
    groups = detect_groups_alone(model, *others, [0, 2], batch_size=24, workers=0, label="val")
    assert len(passes) == (1 if attention == "attend_within_groups" else 2)
    for group, detections in zip((0, 2), groups, strict=True):
        with use_group(model, group):
            alone = run_inference(model, *others, 24, 0)
        for ours, expected in zip(detections, alone, strict=True):
            torch.testing.assert_close(ours.boxes, expected.boxes)


def test_the_model_may_be_on_another_gpu_than_the_accelerator(
    group_pass: GroupPass[Detections], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = group_pass.detect_and_match(RECIPE.criterion(), batch_size=2, workers=0)
    monkeypatch.setattr(Accelerator, "device", property(lambda _: torch.device("meta")))
    images = group_pass.detect_and_match(RECIPE.criterion(), batch_size=2, workers=0)
    np.testing.assert_array_equal(images[-1].matched, expected[-1].matched)


def test_with_matching_the_detections_are_the_same_and_each_object_is_matched_in_each_group(
    group_pass: GroupPass[Detections],
) -> None:
    images = group_pass.detect_and_match(RECIPE.criterion(), batch_size=2, workers=0)
    for index, detections in enumerate(group_pass.detect(batch_size=2, workers=0)):
        objects = list(range(len(group_pass.task.ground_truth(index))))
        for group, of_group in enumerate(detections):
            assert torch.equal(images[index].detections[group].boxes, of_group.boxes)
            matched = images[index].matched[group]
            assert sorted(matched[matched >= 0].tolist()) == objects
