"""The workflows that depend on the input of a detector: single images, or scenes of six cameras."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from groupdetr.engine.task import Task
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.demo_spec import DemoSpec
from groupdetr.tasks.detection2d import demo as demo2d
from groupdetr.tasks.detection2d import prediction as prediction2d
from groupdetr.tasks.detection2d import report as report2d
from groupdetr.tasks.detection2d import validation as validation2d
from groupdetr.tasks.detection3d import demo as demo3d
from groupdetr.tasks.detection3d import prediction as prediction3d
from groupdetr.tasks.detection3d import report as report3d
from groupdetr.tasks.detection3d import validation as validation3d
from groupdetr.tasks.result_formats import Metrics


@dataclass(frozen=True)
class TaskWorkflows:
    """The part of the commands that depends on the task."""

    report: Callable[..., Path]  # writes the page of a run, given its folder and its dataset
    predict: Callable[..., JsonObject | list[JsonObject]]  # returns that of predictions.json
    validate: Callable[..., Metrics]  # writes files, returns the content of metrics.json
    demo_spec: DemoSpec
    predict_argument: str  # the argument of `predict` after the run, for messages


WORKFLOWS = {
    "images": TaskWorkflows(
        report2d.report, prediction2d.predict, validation2d.validate, demo2d.DEMO_SPEC, "IMAGES"
    ),
    "scenes": TaskWorkflows(
        report3d.report, prediction3d.predict, validation3d.validate, demo3d.DEMO_SPEC, "NUSCENES"
    ),
}


def workflows_for(task: type[Task] | Task) -> TaskWorkflows:
    """Return the workflows of a task, which may be a class or an instance."""
    return WORKFLOWS[task.input_kind]
