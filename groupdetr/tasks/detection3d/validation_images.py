"""Validation samples with their detections, as trackers show them during a training."""

from __future__ import annotations

from PIL import Image

from groupdetr.evaluation.nuscenes import NuScenesEvaluation
from groupdetr.structures.detections3d import Detections3D
from groupdetr.tasks.detection3d.prediction import DEFAULT_SCORE, SceneResult
from groupdetr.tasks.detection3d.task import Detection3DTask

CAMERA_WIDTH = 320  # pixels of the image of one camera


def draw_validation_sample(
    task: Detection3DTask, index: int, detections: Detections3D, _: NuScenesEvaluation
) -> tuple[str, Image.Image]:
    """Return the name of validation sample ``index``, and its images as `groupdetr predict` does.

    The score threshold is the one that `groupdetr predict` has without another one.
    """
    sample = task.val.samples[index]
    result = SceneResult(sample=sample, detections=detections.above(DEFAULT_SCORE))
    return f"{sample.scene}-{sample.token}", result.draw(CAMERA_WIDTH)
