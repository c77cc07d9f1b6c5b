"""The workflows that depend on the input of a detector: single images, or scenes of six cameras."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from groupdetr.engine.task import Task
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection2d import prediction_command as prediction2d
from groupdetr.tasks.detection2d import report as report2d
from groupdetr.tasks.detection2d import validation as validation2d
from groupdetr.tasks.detection2d.validation_images import draw_validation_image
from groupdetr.tasks.detection3d import prediction as prediction3d
from groupdetr.tasks.detection3d import report as report3d
from groupdetr.tasks.detection3d import validation as validation3d
from groupdetr.tasks.detection3d.validation_images import draw_validation_sample
from groupdetr.tasks.result_formats import Metrics


@dataclass(frozen=True)
class TaskWorkflows:
    """The part of the commands that depends on the task."""

    report: Callable[..., Path]  # writes the page of a run, given its folder and its dataset
    predict: Callable[..., JsonObject | prediction2d.WrittenPredictions]  # that of predictions.json
    validate: Callable[..., Metrics]  # writes files, returns the content of metrics.json
    predict_argument: str  # the argument of `predict` after the run, for messages
    # Returns the name of a validation image, and the image with its detections, given the task, the
    # index, the detections and the result of the evaluation.
    draw_validation: Callable[..., tuple[str, Image.Image]]


WORKFLOWS = {
    "images": TaskWorkflows(
        report2d.report,
        prediction2d.predict,
        validation2d.validate,
        "IMAGES",
        draw_validation_image,
    ),
    "scenes": TaskWorkflows(
        report3d.report,
        prediction3d.predict,
        validation3d.validate,
        "NUSCENES",
        draw_validation_sample,
    ),
}


def workflows_for(task: type[Task] | Task) -> TaskWorkflows:
    """Return the workflows of a task, which may be a class or an instance."""
    return WORKFLOWS[task.input_kind]
