"""Validation images with their detections, as trackers show them during a training."""

from __future__ import annotations

from PIL import Image

from groupdetr.data.image_decoding import load_image
from groupdetr.evaluation.coco import CocoEvaluation
from groupdetr.structures.detections import Detections
from groupdetr.tasks.detection2d.image_detector import DEFAULT_SCORE
from groupdetr.tasks.detection2d.result import Result
from groupdetr.tasks.detection2d.task import DetectionTask


def draw_validation_image(
    task: DetectionTask, index: int, detections: Detections, evaluation: CocoEvaluation
) -> tuple[str, Image.Image]:
    """Return the name of validation image ``index``, and the image as `groupdetr predict` draws it.

    The score threshold is that of the best F1 in this evaluation, as it is for the weights of the
    best one.
    """
    record = task.val.records[index]
    best = None if evaluation.errors is None else evaluation.errors.best_f1
    result = Result(
        image=load_image(record.path, (record.width, record.height), record.upright),
        detections=detections.above(DEFAULT_SCORE if best is None else best.score),
        categories=[(category.id, category.name) for category in task.data.categories],
    )
    return record.file_name, result.draw()
