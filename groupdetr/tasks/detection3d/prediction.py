"""Prediction of 3D boxes in scenes: `SceneDetector`, `SceneResult` and `groupdetr predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from groupdetr.console.output import create_console
from groupdetr.console.progress import with_progress
from groupdetr.console.text import escape_controls, file_name, quote
from groupdetr.data.image_decoding import load_image
from groupdetr.data.nuscenes.dataset import SceneDataset
from groupdetr.data.nuscenes.names import CLASSES
from groupdetr.data.nuscenes.samples import Sample
from groupdetr.data.nuscenes.version import NuScenes, load
from groupdetr.engine.precision import in_precision
from groupdetr.engine.run_folder import training_data, write_json
from groupdetr.errors import DataError, UsageError, failed_inputs
from groupdetr.evaluation.nuscenes_results import to_results
from groupdetr.files.missing import describe_missing
from groupdetr.files.replacing import expect_replaceable
from groupdetr.settings import MANY, expect_whole_number
from groupdetr.structures.detections3d import Detections3D
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.annotated_images import is_annotated
from groupdetr.tasks.detection3d.task import (
    Detection3DTask,
    to_global_frame,
    trainable_as_detections,
)
from groupdetr.tasks.detection_result import DetectionResult, expect_score, hint_at_lower_score
from groupdetr.tasks.output_files import is_predictions
from groupdetr.tasks.trained_detector import TrainedDetector
from groupdetr.visualize.scenes import DrawableBoxes3D, draw_scene

DEFAULT_SCORE = 0.3  # score threshold of `groupdetr predict`


@dataclass(repr=False)
class SceneResult(DetectionResult):
    """The detections in one sample, sorted by decreasing score, in the frame of its lidar.

    ``labels`` are indices into the ten classes of nuScenes, and ``names`` are their names.

    >>> result = groupdetr.SceneDetector("runs/scenes").predict("nuscenes", limit=1)[0]
    >>> for name, score, box in zip(result.names, result.scores, result.boxes):
    ...     print(f"{name} {score:.2f}", box.round(1))
    >>> result.save("annotated.jpg")
    """

    sample: Sample  # its images, its cameras and its annotations
    detections: Detections3D  # their tensors
    best_score: float | None = None  # the highest of all scores, those below the threshold included

    @property
    def source_files(self) -> Sequence[Path]:
        """The files of the six images."""
        return self.sample.frame().paths

    @property
    def boxes(self) -> NDArray[np.float32]:
        """[D,9] x, y, z, width, length, height, yaw, velocity x, y.

        Lengths are in metres, the yaw in radians, velocities in metres per second.
        """
        boxes: NDArray[np.float32] = self.detections.boxes.numpy()
        return boxes

    @property
    def class_names(self) -> Sequence[str]:
        """The ten classes of nuScenes. Labels are indices into it."""
        return CLASSES

    @property
    def truth(self) -> Detections3D:
        """The annotated objects to train on. A version without annotations has none."""
        return trainable_as_detections(self.sample)

    def best(self, number: int) -> SceneResult:
        """Return the result with only the ``number`` detections of the highest scores."""
        return replace(self, detections=self.detections[:number])

    def draw(self, width: int = 640) -> Image.Image:
        """Return the six images, each ``width`` pixels wide, and the scene from above.

        Detections have the colours of their classes. Annotated objects are white.
        """
        frame = self.sample.frame()
        images = []
        for path, (image_width, image_height) in zip(frame.paths, frame.sizes.tolist()):
            # The cameras are calibrated for images of the recorded size.
            images.append(load_image(path, (image_width, image_height)))
        detections = DrawableBoxes3D(self.boxes, self.labels, self.captions)
        truth = DrawableBoxes3D(self.truth.boxes.numpy())
        return draw_scene(images, frame.lidar_to_image, detections, truth, CLASSES, width)


class SceneDetector(TrainedDetector):
    """A trained detector of 3D boxes in scenes: a run, a weights file, or a model on the hub.

    ``device`` is auto, cpu, cuda or mps. ``imgsz`` is the height of the network's images in
    pixels; None uses that of the training.

    `UsageError` if there is no such run or file, or if it was trained on single images.

    >>> detector = groupdetr.SceneDetector("runs/scenes")
    >>> for result in detector.predict("nuscenes", limit=4):
    ...     result.save(f"{result.sample.token}.jpg")
    """

    input_kind: ClassVar[str | None] = "scenes"

    task: type[Detection3DTask]

    def create_task(self, data: NuScenes) -> Detection3DTask:
        """Return the task of the detector on a dataset that its `read` returned."""
        return self.task(data, self.settings, self.recipe.num_detections)

    def predict(
        self,
        data: str | Path,
        split: str = "val",
        score: float = DEFAULT_SCORE,
        limit: int | None = None,
    ) -> list[SceneResult]:
        """Return the detections in samples of a nuScenes version.

        ``score`` is the score threshold. At most ``limit`` samples are used, evenly spaced over
        the split; None: all.

        `UsageError` for a score that is not from 0 to 1, and for a limit below 1.
        """
        expect_score(score)
        expect_whole_number("limit", limit, 1, MANY)
        samples = self.samples(data, split)
        indices = evenly_spaced_indices(len(samples), limit)
        return [self.predict_sample(samples, index, score) for index in indices]

    def samples(self, data: str | Path, split: str = "val") -> SceneDataset:
        """Return the dataset of the samples of a split, without augmentation."""
        # `load` returns the split under the name "val".
        return self.task.val_dataset(load(data, split).splits["val"], self.imgsz)

    @torch.inference_mode()
    def predict_sample(
        self, samples: SceneDataset, index: int, score: float = DEFAULT_SCORE
    ) -> SceneResult:
        """Return the detections in one of `samples`."""
        images = samples.collate([samples[index]]).images(self.device)
        with in_precision(self.device, "fp32"):
            predictions = self.model(images).final
        (detections,) = self.task.postprocess(predictions, self.recipe.num_detections)
        return SceneResult(
            sample=samples.samples[index],
            detections=detections.above(score),
            best_score=float(detections.scores[0]) if len(detections) else None,
        )


def evenly_spaced_indices(count: int, limit: int | None) -> list[int]:
    """Return at most ``limit`` indices below ``count``, the first of which is 0. None: all."""
    number = count if limit is None else min(limit, count)
    return [index * count // number for index in range(number)]


def predict(
    run: Path,
    inputs: Sequence[str],
    *,
    score: float | None,
    imgsz: int | None,
    split: str,
    limit: int | None,
    device: str,
    out: Path,
) -> JsonObject:
    """Write an image for each sample, and predictions.json, to the folder ``out``.

    Print one line for each sample, and return the content of predictions.json, a result file as the
    devkit of nuScenes reads it. ``inputs`` is the folder of a nuScenes version, or empty for the
    data of the run. ``score`` is the score threshold; None: 0.3. ``limit`` is the number of
    samples; None: all. Samples that cannot be read are skipped; `DataError` at the end.
    """
    if limit is not None and limit < 1:
        raise UsageError(
            f"--limit {limit} leaves no sample to predict",
            remedy="use --limit 1 or more, or leave it out for all samples",
        )
    min_score = DEFAULT_SCORE if score is None else score
    detector = SceneDetector(run, device, imgsz)
    samples = detector.samples(data_folder(run, inputs), split)
    indices = evenly_spaced_indices(len(samples), limit)
    copies = [out / annotated_name(samples.samples[index]) for index in indices]
    remedy = f"choose another folder: --out {quote(out / 'annotated')}"
    expect_replaceable(copies, is_annotated, remedy)
    expect_replaceable([out / "predictions.json"], is_predictions, remedy)

    console = create_console()
    results: list[SceneResult] = []
    unreadable: list[DataError] = []
    for index, copy in with_progress(list(zip(indices, copies)), "predict"):
        try:
            result = detector.predict_sample(samples, index, min_score)
        except DataError as error:
            unreadable.append(error)
            continue
        result.save(copy)
        results.append(result)
        name = f"{result.sample.scene} {result.sample.token}"
        console.print(f"{escape_controls(name)}: {result.counts}")
    content = to_result_file(results)
    write_json(out / "predictions.json", content)
    console.print(f"{len(results)} annotated samples and predictions.json are in {out}")
    best_scores = [result.best_score for result in results if result.best_score is not None]
    if hint := hint_at_lower_score(best_scores, min_score):
        console.print(hint)
    if unreadable:
        raise failed_inputs(unreadable, len(indices), "samples")
    return content


def annotated_name(sample: Sample) -> str:
    """Return the name of the annotated image of a sample. The names of the data lead nowhere."""
    return f"{file_name(sample.scene)}-{file_name(sample.token)}.jpg"


def data_folder(run: Path, inputs: Sequence[str]) -> Path:
    """Return the folder that ``inputs`` names, or that of the data of the run.

    `UsageError` if it does not exist or if ``inputs`` are images.
    """
    remedy = "pass the folder of one nuScenes version"
    for name in inputs:
        if not Path(name).exists():
            what, similar = describe_missing(name)
            raise UsageError(what or "there is no such folder", name, similar or remedy)
    if not inputs:
        data, _ = training_data(run, f"groupdetr predict {quote(run)} NUSCENES")
        return data
    if len(inputs) > 1 or not Path(inputs[0]).is_dir():
        what = "this detector needs scenes of six cameras, not single images"
        raise UsageError(what, inputs[0], remedy)
    return Path(inputs[0])


def to_result_file(results: Sequence[SceneResult]) -> JsonObject:
    """Return the content of a result file of the nuScenes detection challenge.

    It has only these samples, not those of a whole split.
    """
    tokens = [result.sample.token for result in results]
    boxes = [to_global_frame(result.detections, result.sample) for result in results]
    return to_results(tokens, boxes)
