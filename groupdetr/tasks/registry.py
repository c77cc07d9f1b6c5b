"""Registry of tasks: from the name of a task to its class."""

from __future__ import annotations

from importlib import import_module

from groupdetr.engine.task import Task
from groupdetr.errors import UsageError

# name: (module, class). A module is imported when its task is used for the first time, because
# tasks import datasets and evaluations that a detector alone does not need.
TASKS = {
    "detection": ("groupdetr.tasks.detection2d.task", "DetectionTask"),
    "instance_segmentation": ("groupdetr.tasks.detection2d.instance_segmentation", "InstanceTask"),
    "boxes_and_masks": ("groupdetr.tasks.detection2d.instance_segmentation", "BoxAndMaskTask"),
    "detection3d": ("groupdetr.tasks.detection3d.task", "Detection3DTask"),
    "detection3d_two_frames": ("groupdetr.tasks.detection3d.task", "TwoFrameTask"),
}


def task_class(name: str) -> type[Task]:
    """Return the class of the task called ``name``, such as `DetectionTask` for "detection".

    `UsageError` if there is no such task.
    """
    if name not in TASKS:
        raise UsageError(f"unknown task {name!r}", remedy=f"known tasks: {', '.join(TASKS)}")
    module, class_name = TASKS[name]
    return getattr(import_module(module), class_name)
