"""The comparison of an exported file with PyTorch: on some images or scenes, and on a dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Generic, TypeVar

from groupdetr.console.progress import with_progress
from groupdetr.data.image_input import ImageInput
from groupdetr.data.nuscenes import synthetic
from groupdetr.data.nuscenes.dataset import SceneBatch, SceneDataset
from groupdetr.data.records import CocoSplit
from groupdetr.data.synthetic import SyntheticConfig, generate_image
from groupdetr.deployment.exported_detector import ExportedDetector
from groupdetr.deployment.exported_scene_detector import ExportedSceneDetector
from groupdetr.deployment.runtimes import Runtime
from groupdetr.deployment.verification import Agreement, Tolerance, compare, compare_scenes
from groupdetr.engine.run_folder import training_data
from groupdetr.errors import DataError, UsageError
from groupdetr.evaluation.coco import evaluate
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.detection2d.validation import with_classes_of
from groupdetr.tasks.detection3d.prediction import SceneDetector, evenly_spaced_indices

NUM_IMAGES = 8  # that both runtimes detect objects in, to compare them
NUM_SCENES = 3  # of six or twelve images each

Exported = TypeVar("Exported", ExportedDetector, ExportedSceneDetector)


@dataclass(frozen=True)
class Comparison(Generic[Exported]):
    """How the file of a detector is compared with PyTorch.

    A file and PyTorch's own graph are both opened as ``exported_class``, so all that differs is
    their runtime. ``compare`` gets both, and whether a file takes batches; ``evaluate`` returns
    the ``metric`` of one of them on a dataset, and is None without a dataset.
    """

    exported_class: type[Exported]
    compare: Callable[[Exported, Exported, bool, Tolerance], Agreement]
    metric: str
    evaluate: Callable[[Exported], float] | None
    views: int = 0  # images of a scene; 0 for a detector of single images
    two_frames: bool = False  # of a scene

    def agreement(
        self, file: Path, in_torch: Runtime, metadata: JsonObject, tolerance: Tolerance
    ) -> tuple[Agreement, tuple[float, float] | None]:
        """Return how far a file is from PyTorch, and the metric of both, if there is a dataset."""
        exported = self.exported_class.load(file)
        reference = self.exported_class(in_torch, metadata)
        agreement = self.compare(exported, reference, metadata["dynamic_batch"], tolerance)
        if self.evaluate is None:
            return agreement, None
        return agreement, (self.evaluate(exported), self.evaluate(reference))


def comparison_on_images(
    detector: Detector, run: Path, check: Path | None
) -> Comparison[ExportedDetector]:
    """Return the comparison of a detector of images.

    With ``check``, both are evaluated on the val split of this dataset, and compared on its first
    images. Without it, they are compared on images that the run was validated on, or on drawn ones.
    """
    images, split = images_to_compare(detector, run, check)

    def compare_images(
        exported: ExportedDetector,
        reference: ExportedDetector,
        dynamic_batch: bool,
        tolerance: Tolerance,
    ) -> Agreement:
        return compare(exported, reference, images, dynamic_batch, tolerance)

    def average_precision(exported: ExportedDetector) -> float:
        assert split is not None
        detections = []
        for record in with_progress(split.records, "evaluating"):
            detections.append(exported.detect(record.path))
        return evaluate(split, detections, detector.task.kind).stats["AP"]

    return Comparison(
        exported_class=ExportedDetector,
        compare=compare_images,
        metric="AP",
        evaluate=None if split is None else average_precision,
    )


def comparison_on_scenes(
    detector: SceneDetector, run: Path, check: Path | None, size: tuple[int, int]
) -> Comparison[ExportedSceneDetector]:
    """Return the comparison of a detector of scenes, whose images have this height and width.

    With ``check``, both are evaluated on the val split of this dataset, and compared on some of its
    scenes. Without it, they are compared on scenes that the run was validated on, or on drawn ones.
    """
    two_frames = detector.task.two_frames
    task = None
    if check is not None:
        task = detector.create_task(detector.task.read(check, None))
        scenes = _some_scenes(task.val, size, two_frames)
    else:
        scenes = _scenes_of_run(detector, run, size)

    def compare_all(
        exported: ExportedSceneDetector,
        reference: ExportedSceneDetector,
        dynamic_batch: bool,
        _tolerance: Tolerance,
    ) -> Agreement:
        return compare_scenes(exported, reference, scenes, dynamic_batch)

    def nuscenes_detection_score(exported: ExportedSceneDetector) -> float:
        assert task is not None
        samples = SceneDataset(task.val.samples, size, two_frames=two_frames)
        detections = []
        for index in with_progress(range(len(samples)), "evaluating"):
            detections.append(exported.predict(samples.collate([samples[index]])))
        return task.evaluate(detections).stats["NDS"]

    return Comparison(
        exported_class=ExportedSceneDetector,
        compare=compare_all,
        metric="NDS",
        evaluate=None if task is None else nuscenes_detection_score,
        views=scenes[0].pixels.shape[1],
        two_frames=two_frames,
    )


def images_to_compare(
    detector: Detector, run: Path, check: Path | None
) -> tuple[Sequence[ImageInput], CocoSplit | None]:
    """Return images to compare both runtimes on, and the split to evaluate them on, if any."""
    if check is not None:
        split = with_classes_of(detector, detector.task.read_split(check, None, None))
        return [record.path for record in split.records[:NUM_IMAGES]], split
    try:
        data, folder = training_data(run, "")
        records = detector.task.read(data, folder).splits["val"].records[:NUM_IMAGES]
    except (UsageError, DataError):  # a weights file, or data that are no longer there
        config = SyntheticConfig(image_size=256)
        return [generate_image(config, "val", index).image for index in range(NUM_IMAGES)], None
    return [record.path for record in records], None


def _scenes_of_run(detector: SceneDetector, run: Path, size: tuple[int, int]) -> list[SceneBatch]:
    """Return scenes that the run was validated on, or drawn ones."""
    two_frames = detector.task.two_frames
    try:
        data, _ = training_data(run, "")
        return _some_scenes(detector.samples(data), size, two_frames)
    except (UsageError, DataError):  # a weights file, or data that are no longer there
        config = synthetic.SyntheticNuScenesConfig(samples=NUM_SCENES)
        with TemporaryDirectory() as folder:
            synthetic.write(config, folder)
            return _some_scenes(detector.samples(folder), size, two_frames)


def _some_scenes(
    samples: SceneDataset, size: tuple[int, int], two_frames: bool
) -> list[SceneBatch]:
    """Return some samples as scenes of this height and width."""
    resized = SceneDataset(samples.samples, size, two_frames=two_frames)
    indices = evenly_spaced_indices(len(resized), NUM_SCENES)
    return [resized.collate([resized[index]]) for index in indices]
