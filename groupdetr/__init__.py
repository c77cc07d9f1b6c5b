"""Group DETR: fast DETR training with group-wise one-to-many assignment (arXiv 2207.13085).

Names are imported when they are used: ``groupdetr --help`` must not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groupdetr.create import create_criterion, create_model
    from groupdetr.detections import Detections
    from groupdetr.outputs import Outputs
    from groupdetr.predictor import Detector, Result
    from groupdetr.structures import Images, Target
    from groupdetr.tasks.detection3d.prediction import SceneDetector, SceneResult
    from groupdetr.weights import load_weights

__version__ = "0.1.0"
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
    "Detector": "predictor",
    "Result": "predictor",
    "SceneDetector": "tasks.detection3d.prediction",
    "SceneResult": "tasks.detection3d.prediction",
    "Detections": "detections",
    "Images": "structures",
    "Outputs": "outputs",
    "Target": "structures",
    "load_weights": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'groupdetr' has no attribute {name!r}")
    return getattr(import_module(f"groupdetr.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
