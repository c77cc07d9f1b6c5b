"""The HTML page of a run of a detector of images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from groupdetr.data.image_decoding import load_image
from groupdetr.data.layouts import DatasetSplits
from groupdetr.data.records import Record
from groupdetr.engine.run_folder import RunFolder
from groupdetr.errors import DataError
from groupdetr.evaluation.coco import CocoEvaluation
from groupdetr.evaluation.error_analysis import ErrorAnalysis, ImageErrors
from groupdetr.report.panels import DetectionPanel
from groupdetr.report.run import LoadImage, RunReport, write_run_report
from groupdetr.report.run_summary import run_details, summarize_run
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.detection2d.task import DetectionTask

NUM_IMAGES = 8  # on the page


def report(run: RunFolder, dataset: DatasetSplits) -> Path:
    """Write report.html of a run that has been evaluated at least once, and return its path.

    ``dataset`` is what the run was trained on.
    """
    config = run.read_config()
    detector = Detector(run.path, "cpu")
    task = detector.create_task(dataset)
    panels = []
    for index in range(min(NUM_IMAGES, len(task.val))):
        panels.append(detection_panel(task, {"Detections": detector}, index))

    metadata = json.loads(run.data.read_text(encoding="utf-8"))
    data = {"data": metadata["root"]}
    for name, split in metadata["splits"].items():
        data[name] = f"{split['images']} images"
    data["classes"] = len(metadata["categories"])

    content = RunReport(
        name=run.path.name,
        detector=config["model"],
        summary=summarize_run(run),
        evaluation=best_evaluation(run),
        class_names=detector.names,
        panels=panels,
        errors=best_errors(run),
        load_image=image_loader(task.val.records),
        data=data,
        details=run_details(config, detector.recipe),
    )
    write_run_report(run.report, content)
    return run.report


def best_evaluation(run: RunFolder) -> CocoEvaluation:
    """Return the evaluation of the best weights, which the training wrote."""
    metrics = run.best_metrics.read_text(encoding="utf-8")
    return CocoEvaluation.from_json(json.loads(metrics))


def best_errors(run: RunFolder) -> ErrorAnalysis | None:
    """Return what the best weights miss and make up, as the training recorded it.

    None if the file is missing, or is of other weights: a training may have ended between the two
    files, and earlier versions wrote none.
    """
    try:
        content = json.loads(run.best_errors.read_text(encoding="utf-8"))
        metrics = json.loads(run.best_metrics.read_text(encoding="utf-8"))
        if content["step"] != metrics["step"]:
            return None
        return ErrorAnalysis.from_json(content)
    except (OSError, ValueError, LookupError, RecursionError, TypeError):
        return None


def image_loader(records: Sequence[Record]) -> LoadImage:
    """Return a function that loads an image of a split for a page, None if it cannot be read."""
    record_of_id = {record.image_id: record for record in records}

    def load(errors: ImageErrors) -> Image.Image | None:
        record = record_of_id.get(errors.image_id)
        if record is None:
            return None
        try:
            return load_image(record.path, (record.width, record.height), record.upright)
        except DataError:
            return None

    return load


def detection_panel(
    task: DetectionTask, detectors: Mapping[str, Detector], index: int
) -> DetectionPanel:
    """Return validation image ``index``, its ground truth, and the detections of each detector."""
    record = task.val.records[index]
    # The size decides if the EXIF orientation is applied, as in training and evaluation.
    image = load_image(record.path, (record.width, record.height), record.upright)
    detections = {}
    for name, detector in detectors.items():
        (result,) = detector.predict(image, score=0.0)
        detections[name] = result.detections
    return DetectionPanel(image, task.ground_truth(index), detections)
