"""The folder that a command writes to, and what may be in it before."""

from __future__ import annotations

from pathlib import Path

from groupdetr.engine.run_folder import RunFolder
from groupdetr.files.replacing import expect_folder, expect_replaceable
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.output_files import (
    dataset_folders,
    expect_outside_dataset,
    has_json_keys,
)
from groupdetr.tasks.run_or_weights import default_folder

OTHER_FOLDER = "choose another folder with --out"
# Files of `groupdetr val`, the first of which tells if the folder is its own.
VAL_FILES = (
    "metrics.json",
    "predictions.json",
    "errors.json",
    "report.html",
    "per_class.csv",
    "per_group.csv",
)
# Keys of files that tell who wrote them.
METRICS_KEYS = ("per_class",)
CHECK_KEYS = ("verdict", "errors", "warnings")
ENVIRONMENT_KEYS = ("packages", "python")


def output_folder(out: Path | None, run: Path, name: str, create: bool = True) -> Path:
    """Return the folder of --out. Without --out, return the folder ``name`` of the run.

    For a weights file, it is the folder ``name`` next to the file, and for a model on the Hugging
    Face hub, one in ``runs``. The folder is created, unless ``create`` is False.
    """
    folder = out or default_folder(run) / name
    expect_folder(folder)
    if create:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def expect_val_folder(out: Path) -> None:
    """Raise `UsageError` if `groupdetr val` would replace files of others in its folder."""
    if not has_json_keys(out / VAL_FILES[0], METRICS_KEYS):
        files = [out / name for name in VAL_FILES]
        expect_replaceable(files, lambda _: False, OTHER_FOLDER)


def expect_check_file(file: Path) -> None:
    """Raise `UsageError` if check.json would replace a file of others, or cannot be written."""
    expect_folder(file.parent)
    expect_replaceable([file], lambda file: has_json_keys(file, CHECK_KEYS), OTHER_FOLDER)


def expect_new_run(run: RunFolder, dataset: JsonObject) -> None:
    """Raise `UsageError` unless a new run can be written to a folder without a loss.

    The folder may hold other files, and what a training left that was ended before its first step.
    ``dataset`` is the metadata of the dataset that the run is trained on.
    """
    expect_folder(run.path)
    expect_outside_dataset(run.path, dataset_folders(dataset))
    trained = [run.log, run.results, run.best, run.best_metrics, run.best_errors]
    trained += [run.previous, run.report]
    expect_replaceable(trained, lambda _: False, OTHER_FOLDER)
    # A training writes its environment first.
    if not has_json_keys(run.environment, ENVIRONMENT_KEYS):
        begun = [run.environment, run.data, run.last]
        expect_replaceable(begun, lambda _: False, OTHER_FOLDER)


def expect_paper_folder(folder: Path) -> None:
    """Raise `UsageError` unless a folder is that of an item of the paper or of a demo.

    It may also be one without files that would be replaced.
    """
    expect_folder(folder)
    if has_json_keys(folder / "results.json", ("item", "configurations")):
        return
    files = [folder / name for name in ("results.json", "report.html", "table.md")]
    expect_replaceable(files, lambda _: False, OTHER_FOLDER)
