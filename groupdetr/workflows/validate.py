"""`groupdetr val`: evaluate a trained detector."""

from __future__ import annotations

import json
from pathlib import Path

from groupdetr.console.text import file_name
from groupdetr.data.paths import dataset_name
from groupdetr.engine.precision import expect_precision
from groupdetr.engine.run_folder import RunFolder, training_data
from groupdetr.errors import UsageError
from groupdetr.settings import RANGES, expect_whole_number
from groupdetr.tasks.result_formats import Metrics
from groupdetr.tasks.run_or_weights import default_folder, weights_of
from groupdetr.tasks.trained_detector import task_of, weights_and_metadata
from groupdetr.workflows.exported_files import (
    ONE_GROUP,
    OWN_PRECISION,
    expect_usable_with_exported_file,
    is_exported,
)
from groupdetr.workflows.output_folder import expect_val_folder, output_folder
from groupdetr.workflows.own_dataset import expect_data_with_images, is_training_data, real_path
from groupdetr.workflows.task_workflows import workflows_for


def evaluate(
    run: str | Path,
    data: str | Path | None = None,
    *,
    images: str | Path | None = None,
    cache: bool = True,
    split: str | None = None,
    per_group: bool = False,
    vote: int | None = None,
    imgsz: int | None = None,
    batch: int = 8,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    out: str | Path | None = None,
) -> Metrics:
    """Evaluate a run or a weights file, write the metrics, and return the content of metrics.json.

    The keywords are the options of `groupdetr val`. ``data`` is the dataset of the run by default,
    and ``split`` is "val"; a dataset whose annotation file has no name of a split is evaluated with
    all of its images. ``out`` is the folder ``val`` of the run, or another one beside it for other
    images. ``run`` may also be a file that `groupdetr.export` wrote for a runtime: it is evaluated
    in that runtime, and needs ``data``. The result is a dictionary, of which a notebook shows
    tables.

    >>> groupdetr.evaluate("runs/mine", per_group=True)["AP"]
    """
    return validate_command(
        run=Path(run),
        data=Path(data) if data is not None else None,
        images=Path(images) if images is not None else None,
        cache=cache,
        split=split,
        per_group=per_group,
        vote=vote,
        imgsz=imgsz,
        batch=batch,
        workers=workers,
        device=device,
        precision=precision,
        out=Path(out) if out is not None else None,
    )


def validate_command(
    *,
    run: Path,
    data: Path | None,
    images: Path | None,
    cache: bool,
    split: str | None,
    per_group: bool,
    vote: int | None,
    imgsz: int | None,
    batch: int,
    workers: int | None,
    device: str,
    precision: str,
    out: Path | None,
) -> Metrics:
    """Evaluate, write the metrics, and return the content of metrics.json.

    The arguments are the options of `groupdetr val`.
    """
    expect_whole_number("imgsz", imgsz, *RANGES["imgsz"])
    expect_whole_number("batch", batch, *RANGES["batch"])
    expect_whole_number("workers", workers, *RANGES["workers"])
    expect_data_with_images(data, images)
    if is_exported(run):
        of_weights = {
            "--per-group": (per_group, ONE_GROUP),
            "--vote": (vote is not None, ONE_GROUP),
            "--precision": (precision != "fp32", OWN_PRECISION),
        }
        expect_usable_with_exported_file(run, of_weights, device, "evaluate")
        return _validate_exported(
            run,
            data=data,
            images=images,
            cache=cache,
            split=split,
            imgsz=imgsz,
            batch=batch,
            workers=workers,
            out=out,
        )
    task = task_of(run)
    workflows = workflows_for(task)
    expect_precision(precision)
    options_of_images: dict[str, int | str | None] = {"vote": vote, "precision": precision}
    if task.input_kind != "images":
        options_of_images = {}
        if vote is not None:
            raise UsageError(
                "--vote fuses boxes in images, and this detector takes scenes",
                str(run),
                "leave out --vote",
            )
        if precision != "fp32":
            raise UsageError(
                "--precision is for images, and this detector takes scenes",
                str(run),
                "leave out --precision",
            )
    if data is not None and is_training_data(run, data, images):
        # The splits are those of the training, also where a part of train was held out as val.
        data = images = None
    name = folder_name(run, data, split, imgsz)
    if vote is not None:
        name = file_name(f"{name}-vote{vote}")
    if precision != "fp32":
        name = f"{name}-{precision}"
    if out is None:
        out = unused_folder(run, data, name)
    elif name != "val" or not run.is_dir() or real_path(out) != real_path(RunFolder(run).val):
        refuse_folder_of_training(out)
    # The folder is created before the evaluation, so an unwritable one is an error at once.
    folder = output_folder(out, run, name)
    expect_val_folder(folder)
    return workflows.validate(
        run,
        data=data,
        images=images,
        cache=cache,
        split=split,
        per_group=per_group,
        imgsz=imgsz,
        batch=batch,
        workers=workers,
        device=device,
        out=folder,
        **options_of_images,
    )


def _validate_exported(
    file: Path,
    *,
    data: Path | None,
    images: Path | None,
    cache: bool,
    split: str | None,
    imgsz: int | None,
    batch: int,
    workers: int | None,
    out: Path | None,
) -> Metrics:
    """Evaluate an exported file, with the arguments of `validate_command`."""
    if data is None:
        what = "an exported file does not record which dataset it belongs to"
        raise UsageError(what, str(file), "add --data DATA")
    # Imported here: it imports torch.export, which takes a second.
    from groupdetr.deployment import validation
    from groupdetr.deployment.exported_scene_detector import ExportedSceneDetector, load_exported

    detector = load_exported(file, imgsz)
    if out is None:
        # Files of several formats are often beside each other.
        runtime = file.suffix[1:]
        out = unused_folder(file, data, f"{folder_name(file, data, split, imgsz)}-{runtime}")
    else:
        refuse_folder_of_training(out)
    folder = output_folder(out, file, "val")
    expect_val_folder(folder)
    if isinstance(detector, ExportedSceneDetector):
        return validation.validate_scenes(
            detector,
            file,
            data=data,
            images=images,
            split=split,
            batch=batch,
            workers=workers,
            out=folder,
        )
    return validation.validate(
        detector,
        file,
        data=data,
        images=images,
        cache=cache,
        split=split,
        batch=batch,
        workers=workers,
        out=folder,
    )


def folder_name(run: Path, data: Path | None, split: str | None, imgsz: int | None) -> str:
    """Return the name of the folder of an evaluation.

    It is "val" only for the evaluation that the training makes, too: of the val split of its own
    dataset, with images of the same size. ``data`` None is the dataset of the run.
    """
    parts = ["val"]
    if data is not None:
        parts.append(dataset_name(data))
    if split is not None and (data is not None or split != "val"):
        parts.append(split)
    if imgsz is not None and (
        is_exported(run) or imgsz != weights_and_metadata(run)[1].get("imgsz")
    ):
        parts.append(f"imgsz{imgsz}")
    return file_name("-".join(parts))


def unused_folder(run: Path, data: Path | None, name: str) -> Path:
    """Return the folder ``name`` of a run, or beside a weights file.

    If it has the evaluation of other data or other weights, a number is added to the name.
    """
    parent = default_folder(run)
    folder = parent / name
    number = 1
    while name != "val" and not _has_same_subject(folder / "metrics.json", run, data):
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def _has_same_subject(metrics: Path, run: Path, data: Path | None) -> bool:
    """True if a file does not exist, or has metrics of the same weights and of the same data."""
    if not metrics.is_file():
        return True
    if data is None:
        data = training_data(run, "add --data DATA")[0]
    try:
        content = json.loads(metrics.read_text(encoding="utf-8"))
        weights, evaluated = real_path(content["weights"]), real_path(content["data"])
    except (OSError, ValueError, LookupError, RecursionError, TypeError):
        return False
    file = run if is_exported(run) else weights_of(run)
    return weights == real_path(file) and evaluated == real_path(data)


def refuse_folder_of_training(out: Path) -> None:
    """Raise `UsageError` if a folder is that of the metrics that a training has written."""
    run = RunFolder(real_path(out).parent)
    if run.config.is_file() and real_path(out) == real_path(run.val):
        raise UsageError(
            "this folder has the metrics of a training, and this evaluation is another one",
            str(out),
            "choose another --out, or leave it out",
        )
