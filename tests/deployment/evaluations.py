"""Evaluations of exported files and of their weights, on a dataset of the detector's own boxes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import groupdetr
from groupdetr.tasks.result_formats import Metrics
from tests.deployment.exports import CATEGORIES

METRICS = ("AP", "AP50", "AP75", "AR100")


def write_dataset(folder: Path, weights: Path, photos: Sequence[Path]) -> Path:
    """Write a dataset in which a detector is right and wrong, and return its annotation file.

    Of its own detections, every second one of the best eight is an object. Every fourth is moved.
    """
    folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, photo in enumerate(photos, start=1):
        shutil.copy(photo, folder)
        (result,) = groupdetr.Detector(weights, "cpu").predict(photo, score=0)
        width, height = result.image.size
        images.append({"id": number, "file_name": photo.name, "width": width, "height": height})
        for index, row in enumerate(result.to_coco(number)[:8]):
            if index % 2:
                continue
            x, y, box_width, box_height = row["bbox"]
            if index % 4:
                box_width /= 1.3
            box = [x, y, box_width, box_height]
            annotation = {"id": len(annotations) + 1, "bbox": box, "area": box_width * box_height}
            annotations.append({**row, **annotation, "iscrowd": 0})
    categories = [{"id": category_id, "name": name} for category_id, name in CATEGORIES]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file = folder / "labels.json"
    file.write_text(json.dumps(content))
    return file


def evaluate(source: Path, data: Path, out: Path) -> tuple[Metrics, list[dict[str, Any]]]:
    """Evaluate image by image. Return the metrics and predictions.json."""
    metrics = groupdetr.evaluate(source, data, batch=1, workers=0, device="cpu", out=out)
    return metrics, json.loads((out / "predictions.json").read_text())


def assert_same_evaluation(source: Path, weights: Path, data: Path, folder: Path) -> Metrics:
    """Assert that a file has the metrics, the detections and the files of its weights."""
    ours, our_detections = evaluate(source, data, folder / "file")
    theirs, their_detections = evaluate(weights, data, folder / "weights")
    assert theirs["AP"] > 0.05
    assert ours["milliseconds"] > 0
    assert ours.keys() - {"milliseconds"} == theirs.keys()
    for name in METRICS:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6)
    assert [row["AP"] for row in ours["per_class"]] == [row["AP"] for row in theirs["per_class"]]
    for one, other in zip(our_detections, their_detections, strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        # They may reach outside of the image, unlike those of `predict`.
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.1)
    written = [
        sorted(file.name for file in (folder / name).iterdir()) for name in ("file", "weights")
    ]
    assert written[0] == written[1]
    return ours
