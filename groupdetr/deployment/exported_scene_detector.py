"""An exported detector of scenes: the same results as `groupdetr.SceneDetector`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from groupdetr.data.nuscenes.dataset import SceneBatch
from groupdetr.deployment.exported_detector import open_exported
from groupdetr.deployment.graph import SCENE_INPUTS
from groupdetr.deployment.runtimes import Outputs, Runtime
from groupdetr.errors import UsageError
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.detections3d import Detections3D
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection3d.task import are_inside


@dataclass(frozen=True)
class ExportedSceneDetector:
    """A file that `groupdetr export` wrote of a detector of scenes, opened by its runtime.

    >>> samples = groupdetr.SceneDetector("runs/scenes").samples("nuscenes")
    >>> exported = ExportedSceneDetector.load("runs/scenes/weights/best.onnx")
    >>> detections = exported.predict(samples.collate([samples[0]])).above(0.3)
    """

    runtime: Runtime
    metadata: JsonObject

    @classmethod
    def load(cls, file: str | Path) -> ExportedSceneDetector:
        """Open a file. `UsageError` if it is no exported detector of scenes."""
        runtime, metadata = open_exported(file)
        if metadata.get("task") != "box3d":
            what = "this file detects objects in single images"
            module = "groupdetr.deployment.exported_detector"
            raise UsageError(what, str(file), f"open it by ExportedDetector of {module}")
        return cls(runtime, metadata)

    def predict(self, scene: SceneBatch) -> Detections3D:
        """Return all detections in a batch of one scene, best first."""
        return self.detections(self.runtime(*self.inputs_of(scene)))

    def inputs_of(self, scene: SceneBatch) -> list[NDArray[np.float32]]:
        """Return a scene as the inputs of the graph."""
        pixels = scene.pixels.float()
        images = CameraImages.from_projections(pixels, scene.lidar_to_image, scene.elapsed)
        tensors = dict(zip(SCENE_INPUTS, (pixels, images.image_to_lidar, scene.elapsed)))
        return [np.ascontiguousarray(tensors[name].numpy()) for name in self.metadata["inputs"]]

    def detections(self, outputs: Outputs) -> Detections3D:
        """Return the outputs of one scene as detections. Those that are too far away are left out.

        The distance is that of `groupdetr.SceneDetector`.
        """
        tensors = {name: torch.from_numpy(value[0]) for name, value in outputs.items()}
        scene = Detections3D(tensors["scores"], tensors["labels"], tensors["boxes"])
        return scene[are_inside(scene.boxes)]
