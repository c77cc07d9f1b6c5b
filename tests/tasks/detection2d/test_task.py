"""What trainings on pictures take of memory, as their tasks tell it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from groupdetr.data.formats import DataSet, load
from groupdetr.settings import Settings
from groupdetr.tasks.detection2d.instance_segmentation import InstanceTask
from groupdetr.tasks.detection2d.task import CACHE, DetectionTask

SETTINGS = Settings(imgsz=48, augment="none")


def test_every_loader_process_keeps_pictures_of_its_own(shapes: Path) -> None:
    data = load(shapes)
    none, one, four, many = (
        DetectionTask(data, SETTINGS, 10, workers).kept for workers in (0, 1, 4, CACHE)
    )
    assert none == one == 24 * 48 * 48 * 3
    assert four == 4 * one
    assert many == CACHE, "a byte each: together no more than all may keep"


def test_pictures_that_are_not_trained_on_are_not_the_worst(shapes: Path) -> None:
    data = load(shapes, masks=True)
    train = data.splits["train"]
    wide = replace(
        train.records[0], width=500, crowd=train.records[0].crowd | True
    )  # without an object to learn
    data = DataSet(
        data.root, {**data.splits, "train": replace(train, records=(*train.records, wide))}
    )
    of_boxes, of_masks = (
        kind(data, SETTINGS, 10).worst(int).together for kind in (DetectionTask, InstanceTask)
    )
    assert of_boxes[1] > 48
    assert of_masks == (48, 48)
