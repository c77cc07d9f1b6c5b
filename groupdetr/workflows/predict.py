"""`groupdetr predict`: detect objects and draw them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from groupdetr.engine.precision import expect_precision
from groupdetr.errors import UsageError
from groupdetr.settings import MANY, RANGES, expect_whole_number
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection2d.prediction_command import WrittenPredictions, write_predictions
from groupdetr.tasks.detection_result import expect_score
from groupdetr.tasks.trained_detector import task_of
from groupdetr.workflows.exported_files import (
    NO_SCENES,
    ONE_GROUP,
    OWN_PRECISION,
    expect_usable_with_exported_file,
    is_exported,
)
from groupdetr.workflows.output_folder import output_folder
from groupdetr.workflows.task_workflows import workflows_for


def predict(
    *,
    run: Path,
    inputs: Sequence[str],
    score: float | None,
    classes: Sequence[str] | None = None,
    imgsz: int | None,
    split: str,
    limit: int | None,
    device: str,
    out: Path | None,
    batch: int = 1,
    workers: int | None = None,
    precision: str = "fp32",
    save_txt: bool = False,
    save_json: bool = False,
    save_crops: bool = False,
    show_groups: bool = False,
    uncertainty: bool = False,
    vote: int | None = None,
) -> JsonObject | WrittenPredictions:
    """Write annotated images, videos or scenes, and predictions.json, whose content is returned.

    The arguments are the options of `groupdetr predict`.
    """
    expect_whole_number("imgsz", imgsz, *RANGES["imgsz"])
    expect_whole_number("limit", limit, 1, MANY)
    expect_whole_number("batch", batch, *RANGES["batch"])
    expect_whole_number("workers", workers, *RANGES["workers"])
    if score is not None:
        expect_score(score)
    if is_exported(run):
        of_weights = {
            "--split": (split != "val", NO_SCENES),
            "--precision": (precision != "fp32", OWN_PRECISION),
            "--show-groups": (show_groups, ONE_GROUP),
            "--uncertainty": (uncertainty, ONE_GROUP),
            "--vote": (vote is not None, ONE_GROUP),
        }
        expect_usable_with_exported_file(run, of_weights, device, "predict with")
        # Imported here: it imports torch.export, which takes a second.
        from groupdetr.deployment.exported_detector import ExportedDetector

        return write_predictions(
            lambda: ExportedDetector.load(run, imgsz),
            inputs,
            score=score,
            classes=classes,
            limit=limit,
            out=output_folder(out, run, "predict", create=False),
            batch=batch,
            workers=workers,
            save_txt=save_txt,
            save_json=save_json,
            save_crops=save_crops,
        )
    task = task_of(run)
    if task.input_kind == "images" and split != "val":
        raise UsageError(
            "--split is for scenes, and this detector takes images",
            str(run),
            "leave it out, and name the images",
        )
    expect_precision(precision)
    options_of_images: dict[str, int | str | Sequence[str] | None] = {}
    if task.input_kind == "images":
        options_of_images = {
            "classes": classes,
            "batch": batch,
            "workers": workers,
            "precision": precision,
            "save_txt": save_txt,
            "save_json": save_json,
            "save_crops": save_crops,
            "show_groups": show_groups,
            "uncertainty": uncertainty,
            "vote": vote,
        }
    elif uncertainty or vote is not None or precision != "fp32":
        raise UsageError(
            "--uncertainty, --vote and --precision are for images, and this detector takes scenes",
            str(run),
            "leave them out",
        )
    elif classes is not None:
        raise UsageError(
            "--classes is for images, and this detector takes scenes",
            str(run),
            "leave it out; predictions.json has the class of every box",
        )
    elif batch != 1 or workers is not None or save_txt or save_json or save_crops or show_groups:
        raise UsageError(
            "--batch, --workers, --save-txt, --save-json, --save-crops and --show-groups are for "
            "images, and this detector takes scenes",
            str(run),
            "leave them out; predictions.json has the boxes in the format of nuScenes",
        )
    workflows = workflows_for(task)
    return workflows.predict(
        run,
        inputs,
        score=score,
        imgsz=imgsz,
        split=split,
        limit=limit,
        device=device,
        # That of images is created when they are found.
        out=output_folder(out, run, "predict", create=task.input_kind != "images"),
        **options_of_images,
    )
