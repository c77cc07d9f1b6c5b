"""Group DETR: fast DETR training with group-wise one-to-many assignment (arXiv 2207.13085).

>>> import groupdetr
>>> groupdetr.list_models("*tiny*")
>>> run = groupdetr.train("data/mine", model="dino-tiny", groups=6, epochs=20)
>>> groupdetr.evaluate(run.path, per_group=True)["AP"]
>>> groupdetr.Detector(run.path).predict("photo.jpg")[0].show()

Names are imported when they are used: ``groupdetr --help`` must not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groupdetr.analysis.isolation import Isolation, isolation
    from groupdetr.analysis.module_isolation import ModuleIsolation
    from groupdetr.criterion.boxes import L1, GIoU
    from groupdetr.criterion.boxes3d import EncodedBoxes3D, EncodedBoxL1
    from groupdetr.criterion.boxes_and_masks import BoxesAndPointSampledMasks
    from groupdetr.criterion.classification import Focal, IoUAwareBCE, Softmax
    from groupdetr.criterion.criterion import SetCriterion
    from groupdetr.criterion.masks import Dice, PointCrossEntropy, PointSampledMasks
    from groupdetr.criterion.term import Term
    from groupdetr.deployment.exported_detector import ExportedDetector
    from groupdetr.engine.callbacks import Callback
    from groupdetr.errors import GroupDETRError
    from groupdetr.groups import (
        MultiheadAttentionWithinGroups,
        attend_within_groups,
        match_groups,
    )
    from groupdetr.registry import (
        create_criterion,
        create_model,
        list_models,
        load_plugin,
        register_model,
    )
    from groupdetr.settings import Settings
    from groupdetr.structures.assignment import Assignment
    from groupdetr.structures.camera_images import CameraImages
    from groupdetr.structures.detections import Detections
    from groupdetr.structures.detections3d import Detections3D
    from groupdetr.structures.images import Images
    from groupdetr.structures.memory import Memory
    from groupdetr.structures.outputs import Outputs
    from groupdetr.structures.predictions import Predictions
    from groupdetr.structures.queries import Queries
    from groupdetr.structures.step_objects import StepObjects
    from groupdetr.structures.targets import Target
    from groupdetr.tasks.detection2d.prediction import Detector
    from groupdetr.tasks.detection2d.result import Result
    from groupdetr.tasks.detection3d.prediction import SceneDetector, SceneResult
    from groupdetr.version import __version__
    from groupdetr.weights.loading import load_weights
    from groupdetr.workflows.check import check, draw_augmentation, load_dataset
    from groupdetr.workflows.compare import compare
    from groupdetr.workflows.export import export
    from groupdetr.workflows.groups import compare_groups
    from groupdetr.workflows.label_errors import find_label_errors
    from groupdetr.workflows.paper import reproduce
    from groupdetr.workflows.push import push
    from groupdetr.workflows.train import train
    from groupdetr.workflows.training_result import TrainingResult
    from groupdetr.workflows.ui import ui
    from groupdetr.workflows.validate import evaluate

# name: the module that defines it. A test compares it with the imports above.
_MODULES = {
    "Assignment": "structures.assignment",
    "BoxesAndPointSampledMasks": "criterion.boxes_and_masks",
    "Callback": "engine.callbacks",
    "CameraImages": "structures.camera_images",
    "Detections": "structures.detections",
    "Detections3D": "structures.detections3d",
    "Detector": "tasks.detection2d.prediction",
    "Dice": "criterion.masks",
    "EncodedBoxL1": "criterion.boxes3d",
    "EncodedBoxes3D": "criterion.boxes3d",
    "ExportedDetector": "deployment.exported_detector",
    "Focal": "criterion.classification",
    "IoUAwareBCE": "criterion.classification",
    "GIoU": "criterion.boxes",
    "GroupDETRError": "errors",
    "Images": "structures.images",
    "Isolation": "analysis.isolation",
    "L1": "criterion.boxes",
    "Memory": "structures.memory",
    "ModuleIsolation": "analysis.module_isolation",
    "MultiheadAttentionWithinGroups": "groups",
    "Outputs": "structures.outputs",
    "PointCrossEntropy": "criterion.masks",
    "PointSampledMasks": "criterion.masks",
    "Predictions": "structures.predictions",
    "Queries": "structures.queries",
    "Result": "tasks.detection2d.result",
    "SceneDetector": "tasks.detection3d.prediction",
    "SceneResult": "tasks.detection3d.prediction",
    "SetCriterion": "criterion.criterion",
    "Settings": "settings",
    "Softmax": "criterion.classification",
    "StepObjects": "structures.step_objects",
    "Target": "structures.targets",
    "Term": "criterion.term",
    "TrainingResult": "workflows.training_result",
    "__version__": "version",
    "attend_within_groups": "groups",
    "check": "workflows.check",
    "compare": "workflows.compare",
    "compare_groups": "workflows.groups",
    "create_criterion": "registry",
    "create_model": "registry",
    "draw_augmentation": "workflows.check",
    "evaluate": "workflows.validate",
    "export": "workflows.export",
    "find_label_errors": "workflows.label_errors",
    "isolation": "analysis.isolation",
    "list_models": "registry",
    "load_dataset": "workflows.check",
    "load_plugin": "registry",
    "load_weights": "weights.loading",
    "match_groups": "groups",
    "push": "workflows.push",
    "register_model": "registry",
    "reproduce": "workflows.paper",
    "train": "workflows.train",
    "ui": "workflows.ui",
}

__all__ = [
    "L1",
    "Assignment",
    "BoxesAndPointSampledMasks",
    "Callback",
    "CameraImages",
    "Detections",
    "Detections3D",
    "Detector",
    "Dice",
    "EncodedBoxL1",
    "EncodedBoxes3D",
    "ExportedDetector",
    "Focal",
    "GIoU",
    "GroupDETRError",
    "Images",
    "IoUAwareBCE",
    "Isolation",
    "Memory",
    "ModuleIsolation",
    "MultiheadAttentionWithinGroups",
    "Outputs",
    "PointCrossEntropy",
    "PointSampledMasks",
    "Predictions",
    "Queries",
    "Result",
    "SceneDetector",
    "SceneResult",
    "SetCriterion",
    "Settings",
    "Softmax",
    "StepObjects",
    "Target",
    "Term",
    "TrainingResult",
    "__version__",
    "attend_within_groups",
    "check",
    "compare",
    "compare_groups",
    "create_criterion",
    "create_model",
    "draw_augmentation",
    "evaluate",
    "export",
    "find_label_errors",
    "isolation",
    "list_models",
    "load_dataset",
    "load_plugin",
    "load_weights",
    "match_groups",
    "push",
    "register_model",
    "reproduce",
    "train",
    "ui",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'groupdetr' has no attribute {name!r}")
    return getattr(import_module(f"groupdetr.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
