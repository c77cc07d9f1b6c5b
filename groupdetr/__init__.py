"""Group DETR: fast DETR training with group-wise one-to-many assignment (arXiv 2207.13085).

Names are imported when they are used: ``groupdetr --help`` must not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from groupdetr.version import __version__ as __version__

if TYPE_CHECKING:
    from groupdetr.create import create_criterion, create_model
    from groupdetr.structures.detections import Detections
    from groupdetr.structures.images import Images
    from groupdetr.structures.outputs import Outputs
    from groupdetr.structures.targets import Target
    from groupdetr.tasks.detection2d.prediction import Detector, Result
    from groupdetr.tasks.detection3d.prediction import SceneDetector, SceneResult
    from groupdetr.weights.loading import load_weights

__all__ = [
    "Detections",
    "Detector",
    "Images",
    "Outputs",
    "Result",
    "SceneDetector",
    "SceneResult",
    "Target",
    "create_criterion",
    "create_model",
    "load_weights",
]

_HOMES = {
    "create_criterion": "create",
    "create_model": "create",
    "Detector": "tasks.detection2d.prediction",
    "Result": "tasks.detection2d.prediction",
    "SceneDetector": "tasks.detection3d.prediction",
    "SceneResult": "tasks.detection3d.prediction",
    "Detections": "structures.detections",
    "Images": "structures.images",
    "Outputs": "structures.outputs",
    "Target": "structures.targets",
    "load_weights": "weights.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'groupdetr' has no attribute {name!r}")
    return getattr(import_module(f"groupdetr.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
