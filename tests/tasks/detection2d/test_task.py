"""How much memory the tasks on images say that a training needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from groupdetr.data.layouts import DatasetSplits, load
from groupdetr.settings import Settings
from groupdetr.tasks.detection2d.instance_segmentation import InstanceTask
from groupdetr.tasks.detection2d.task import MAX_CACHE_BYTES, DetectionTask

SETTINGS = Settings(imgsz=48, augment="none")


def test_every_loader_worker_has_its_own_cache(shapes: Path) -> None:
    data = load(shapes)

    def cache_bytes(workers: int) -> int:
        return DetectionTask(data, SETTINGS, 10, workers).cache_bytes

    one_cache = 24 * 48 * 48 * 3
    assert cache_bytes(0) == cache_bytes(1) == one_cache
    assert cache_bytes(4) == 4 * one_cache
    # With so many workers each cache is limited to one byte. Together they keep the maximum.
    assert cache_bytes(MAX_CACHE_BYTES) == MAX_CACHE_BYTES


def test_images_without_objects_count_for_boxes_and_not_for_masks(shapes: Path) -> None:
    """Instance segmentation is not trained on them, so they cannot be its worst case."""
    data = load(shapes, masks=True)
    train = data.splits["train"]
    record = train.records[0]
    only_crowds = replace(record, width=500, crowd=record.crowd | True)
    with_wide_image = replace(train, records=(*train.records, only_crowds))
    data = DatasetSplits(data.root, {**data.splits, "train": with_wide_image})
    of_boxes = DetectionTask(data, SETTINGS, 10).worst_case(int)
    of_masks = InstanceTask(data, SETTINGS, 10).worst_case(int)
    assert of_boxes.batch_size[1] > 48
    assert of_masks.batch_size == (48, 48)
