"""Evaluation of an exported detector, by the same metrics as that of a run."""

from __future__ import annotations

from pathlib import Path

import torch

from groupdetr.console.progress import CountProgress
from groupdetr.console.text import quantity
from groupdetr.data.nuscenes.version import refuse_image_folder
from groupdetr.deployment.exported_detector import ExportedDetector
from groupdetr.deployment.exported_scene_detector import ExportedSceneDetector
from groupdetr.deployment.runtimes import runtime_name
from groupdetr.deployment.verification import median_milliseconds
from groupdetr.engine.accelerator import create_single_accelerator, loader_workers
from groupdetr.engine.inference import map_dataset
from groupdetr.tasks.detection2d.task import DetectionTask
from groupdetr.tasks.detection2d.validation import (
    Validation,
    detect,
    evaluation_task,
    expect_outside_split,
    read_named_split,
    with_classes_of,
    write_validation,
)
from groupdetr.tasks.detection3d.validation import load_split
from groupdetr.tasks.detection3d.validation import write_validation as write_scene_validation
from groupdetr.tasks.output_files import dataset_folders, expect_outside_dataset
from groupdetr.tasks.result_formats import Metrics


def validate(
    detector: ExportedDetector,
    file: Path,
    *,
    data: Path,
    images: Path | None,
    cache: bool,
    split: str | None,
    batch: int,
    workers: int | None,
    out: Path,
) -> Metrics:
    """Evaluate a file on the images of a split, write files, and return what metrics.json holds.

    ``detector`` was loaded from ``file``. The other arguments are those of
    `groupdetr.tasks.detection2d.validation.validate`, and so are the files and the metrics. They
    are those of an evaluation in PyTorch with batches of one image, because the graph takes no
    padding. The time of one image is measured, too.
    """
    accelerator = create_single_accelerator("cpu")
    evaluated, part = read_named_split(detector, data, images, split, cache)
    expect_outside_split(out, data, evaluated)
    evaluated = with_classes_of(detector, evaluated)
    task = evaluation_task(detector, evaluated)
    detections = detect(detector, task, accelerator, batch, workers)
    validation = Validation(evaluated, detections, task.evaluate(detections), groups=[])

    milliseconds, (height, width) = time_of_one_image(detector, task)
    threads = quantity(torch.get_num_threads(), "thread")
    note = (
        f"{runtime_name(file)}: one image of {height} x {width} pixels takes {milliseconds:.3g} ms "
        f"on this CPU, with {threads}"
    )
    if len({(record.width, record.height) for record in evaluated.records}) > 1:
        note += (
            "\nto compare it with the run: groupdetr val RUN --batch 1, because larger batches pad "
            "smaller images, which changes the metrics"
        )
    details = {"milliseconds": round(milliseconds, 3)}
    return write_validation(validation, file, data, part, out, details, note)


def validate_scenes(
    detector: ExportedSceneDetector,
    file: Path,
    *,
    data: Path,
    images: Path | None,
    split: str | None,
    batch: int,
    workers: int | None,
    out: Path,
) -> Metrics:
    """Evaluate an exported file on the scenes of a split, as `validate` does on images.

    The other arguments are those of `groupdetr.tasks.detection3d.validation.validate`, and so are
    the files and the metrics. The time of one scene is measured, too.
    """
    refuse_image_folder(images)
    split = split or "val"
    dataset = load_split(data, split, "name a split with annotated objects: --split SPLIT")
    expect_outside_dataset(out, dataset_folders(dataset.metadata()))
    task = detector.create_task(dataset)
    accelerator = create_single_accelerator("cpu")
    num_workers = loader_workers(workers)
    with CountProgress("val") as progress:
        detections = map_dataset(
            detector.detect_batch, task, accelerator, batch, num_workers, progress
        )

    inputs = detector.inputs_of(task.val.collate([task.val[0]]))
    milliseconds = median_milliseconds(lambda: detector.runtime(*inputs))
    views, _, height, width = inputs[0].shape[1:]
    threads = quantity(torch.get_num_threads(), "thread")
    note = (
        f"{runtime_name(file)}: one scene of {views} images of {height} x {width} pixels takes "
        f"{milliseconds:.3g} ms on this CPU, with {threads}"
    )
    details = {"milliseconds": round(milliseconds, 3)}
    return write_scene_validation(task, detections, [], file, data, split, out, details, note)


def time_of_one_image(
    detector: ExportedDetector, task: DetectionTask
) -> tuple[float, tuple[int, int]]:
    """Return the milliseconds that the graph takes for the first image, and its height and width.

    The image is already decoded and resized, and the detections are not enlarged to the image on
    disk. The height and width are those of the input.
    """
    pixels, _, _ = task.val[0]
    example = pixels.float().unsqueeze(0).contiguous().numpy()
    height, width = pixels.shape[1:]
    return median_milliseconds(lambda: detector.runtime(example)), (height, width)
