"""An exported detector of scenes: the same results as `groupdetr.SceneDetector`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from groupdetr.data.nuscenes.dataset import SceneBatch, SceneDataset
from groupdetr.data.nuscenes.version import NuScenes
from groupdetr.deployment.exported_detector import (
    ExportedDetector,
    open_exported,
    takes_scenes,
)
from groupdetr.deployment.graph import SCENE_INPUTS
from groupdetr.deployment.runtimes import Outputs, Runtime
from groupdetr.engine.task import Batch
from groupdetr.errors import UsageError
from groupdetr.settings import Settings
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.detections3d import Detections3D
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection3d.task import Detection3DTask, TwoFrameTask, are_inside


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
        if not takes_scenes(metadata):
            what = "this file detects objects in single images"
            module = "groupdetr.deployment.exported_detector"
            raise UsageError(what, str(file), f"open it by ExportedDetector of {module}")
        return cls(runtime, metadata)

    def create_task(self, data: NuScenes) -> Detection3DTask:
        """Return the task of the detector on a dataset, with images of the size of the graph."""
        task_class = TwoFrameTask if "elapsed" in self.metadata["inputs"] else Detection3DTask
        settings = Settings(imgsz=self.metadata["imgsz"], augment="none")
        # The graph chooses the detections, so their number is not needed here.
        task = task_class(data, settings, num_detections=0)
        height, width = self.metadata["size"]
        task.val = SceneDataset(
            data.splits["val"], (height, width), two_frames=task_class.two_frames
        )
        return task

    def detect_batch(self, batch: Batch) -> list[Detections3D]:
        """Return the detections in each scene of a batch.

        `create_task` has the scenes. Without ``--dynamic-batch`` of the export, the graph takes
        one of them at a time.
        """
        inputs = self.inputs_of(cast(SceneBatch, batch))
        scenes = len(inputs[0])
        at_once = scenes if self.metadata["dynamic_batch"] else 1
        detections = []
        for first in range(0, scenes, at_once):
            outputs = self.runtime(*(array[first : first + at_once] for array in inputs))
            for index in range(at_once):
                of_scene = {name: value[index : index + 1] for name, value in outputs.items()}
                detections.append(self.detections(of_scene))
        return detections

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


def load_exported(
    file: str | Path, imgsz: int | None = None
) -> ExportedDetector | ExportedSceneDetector:
    """Open a file of a detector of images or of scenes.

    `UsageError` as `ExportedDetector.load`. The images of scenes always have a fixed size.
    """
    runtime, metadata = open_exported(file)
    if not takes_scenes(metadata):
        return ExportedDetector.opened(runtime, metadata, Path(file), imgsz)
    height, width = metadata["size"]
    if imgsz not in (None, height):
        raise UsageError(
            f"the images of this file have a fixed size, {height} x {width} pixels",
            str(file),
            f"leave out imgsz, or export it again: groupdetr export RUN --imgsz {imgsz}",
        )
    return ExportedSceneDetector(runtime, metadata)
