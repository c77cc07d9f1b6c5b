"""`groupdetr groups`: what the groups of a trained detector know, from one pass with all groups."""

from __future__ import annotations

from pathlib import Path

from groupdetr.console.text import file_name, quote
from groupdetr.errors import UsageError
from groupdetr.files.replacing import expect_replaceable
from groupdetr.settings import RANGES, expect_whole_number
from groupdetr.tasks.detection2d.group_analysis import analyse_groups
from groupdetr.tasks.output_files import has_json_keys
from groupdetr.tasks.result_formats import Metrics
from groupdetr.tasks.trained_detector import task_of
from groupdetr.workflows.output_folder import OTHER_FOLDER, output_folder
from groupdetr.workflows.own_dataset import expect_data_with_images, is_training_data
from groupdetr.workflows.validate import folder_name

FILES = ("groups.json", "report.html", "per_group.csv")


def compare_groups(
    run: str | Path,
    data: str | Path | None = None,
    *,
    images: str | Path | None = None,
    cache: bool = True,
    split: str | None = None,
    imgsz: int | None = None,
    batch: int = 8,
    workers: int | None = None,
    device: str = "auto",
    best: bool = False,
    out: str | Path | None = None,
) -> Metrics:
    """Evaluate what the groups of a run detect, write a page, and return that of groups.json.

    The keywords are the options of `groupdetr groups`. ``data`` is the dataset of the run by
    default, and ``split`` is "val". ``best`` also writes weights in which the best group answers,
    beside those of the run. ``out`` is the folder ``groups`` of the run, or another one beside it
    for other images. The result is a dictionary, of which a notebook shows tables.

    `UsageError` for a detector with one group, whose groups attend to each other, or of scenes.

    >>> groupdetr.compare_groups("runs/mine")["best_group"]
    """
    return groups_command(
        run=Path(run),
        data=Path(data) if data is not None else None,
        images=Path(images) if images is not None else None,
        cache=cache,
        split=split,
        imgsz=imgsz,
        batch=batch,
        workers=workers,
        device=device,
        best=best,
        out=Path(out) if out is not None else None,
    )


def groups_command(
    *,
    run: Path,
    data: Path | None,
    images: Path | None,
    cache: bool,
    split: str | None,
    imgsz: int | None,
    batch: int,
    workers: int | None,
    device: str,
    best: bool,
    out: Path | None,
) -> Metrics:
    """Write groups.json and report.html. The arguments are the options of `groupdetr groups`."""
    expect_whole_number("imgsz", imgsz, *RANGES["imgsz"])
    expect_whole_number("batch", batch, *RANGES["batch"])
    expect_whole_number("workers", workers, *RANGES["workers"])
    expect_data_with_images(data, images)
    if task_of(run).input_kind != "images":
        raise UsageError(
            "the groups of detectors of scenes are not compared yet",
            str(run),
            f"their metrics: groupdetr val {quote(run)} --per-group",
        )
    if data is not None and is_training_data(run, data, images):
        # The splits are those of the training, also where a part of train was held out as val.
        data = images = None
    if best:
        _expect_own_val_split(run, data, split, imgsz)
    name = folder_name(run, data, split, imgsz).replace("val", "groups", 1)
    folder = output_folder(out, run, file_name(name))
    if not has_json_keys(folder / FILES[0], ("answering_group", "query_use")):
        expect_replaceable([folder / file for file in FILES], lambda _: False, OTHER_FOLDER)
    return analyse_groups(
        run,
        data=data,
        images=images,
        cache=cache,
        split=split,
        imgsz=imgsz,
        batch=batch,
        workers=workers,
        device=device,
        best=best,
        out=folder,
    )


def _expect_own_val_split(
    run: Path, data: Path | None, split: str | None, imgsz: int | None
) -> None:
    """Raise `UsageError` unless the best group is chosen as the best weights of a run are."""
    if not run.is_dir() or not (run / "config.yaml").is_file():
        raise UsageError(
            "--best writes beside the best weights of a run, and this is not the folder of a run",
            str(run),
            "pass the folder that `groupdetr train` wrote (its --out)",
        )
    if data is not None or split not in (None, "val") or imgsz is not None:
        raise UsageError(
            "--best chooses the best group on the val split of the run, and other images are named",
            str(run),
            "leave out --data, --split and --imgsz, or leave out --best",
        )
