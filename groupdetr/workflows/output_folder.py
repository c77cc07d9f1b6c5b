"""The folder that a command writes to, and what may be in it before."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from groupdetr.checkpoints.file_format import KEY
from groupdetr.engine.run_folder import RunFolder
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.output_files import (
    dataset_folders,
    expect_outside_dataset,
    expect_replaceable,
    has_json_keys,
    same_file,
)

OTHER_FOLDER = "choose another folder with --out"
# Files of `groupdetr val`, the first of which tells if the folder is its own.
VAL_FILES = ("metrics.json", "predictions.json", "per_class.csv", "per_group.csv")
# Keys of files that tell who wrote them.
METRICS_KEYS = ("per_class",)
CHECK_KEYS = ("verdict", "errors", "warnings")
ENVIRONMENT_KEYS = ("packages", "python")


def output_folder(out: Path | None, run: Path, name: str) -> Path:
    """Return the folder of --out. Without --out, return the folder ``name`` of the run.

    For a weights file, it is the folder ``name`` next to the file. The folder is created.
    """
    parent = run if run.is_dir() else run.parent
    folder = out or parent / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def expect_val_folder(out: Path) -> None:
    """Raise `UsageError` if `groupdetr val` would replace files of others in its folder."""
    if not has_json_keys(out / VAL_FILES[0], METRICS_KEYS):
        files = [out / name for name in VAL_FILES]
        expect_replaceable(files, lambda _: False, OTHER_FOLDER)


def expect_check_file(file: Path) -> None:
    """Raise `UsageError` if check.json would replace a file of others."""
    expect_replaceable([file], lambda file: has_json_keys(file, CHECK_KEYS), OTHER_FOLDER)


def expect_new_run(run: RunFolder, dataset: JsonObject) -> None:
    """Raise `UsageError` unless a new run can be written to a folder without a loss.

    The folder may hold other files, and what a training left that was ended before its first step.
    ``dataset`` is the metadata of the dataset that the run is trained on.
    """
    expect_outside_dataset(run.path, dataset_folders(dataset))
    trained = [run.log, run.results, run.best, run.best_metrics, run.previous, run.report]
    expect_replaceable(trained, lambda _: False, OTHER_FOLDER)
    # A training writes its environment first.
    if not has_json_keys(run.environment, ENVIRONMENT_KEYS):
        begun = [run.environment, run.data, run.last]
        expect_replaceable(begun, lambda _: False, OTHER_FOLDER)


def expect_demo_folder(folder: Path) -> None:
    """Raise `UsageError` unless a folder is that of a demo, or has no files that it would replace.

    The demo writes demo.json first.
    """
    recorded = folder / "demo.json"
    if has_json_keys(recorded, ("groups", "epochs")):
        return
    files = [recorded, folder / "data", folder / "metrics.json", folder / "report.html"]
    expect_replaceable(files, lambda _: False, OTHER_FOLDER)


def expect_import_file(source: Path, out: Path) -> None:
    """Raise `UsageError` if an import would replace its source, the weights of a run, or others.

    Other files of weights that this library wrote may be replaced.
    """

    def is_own(file: Path) -> bool:
        in_run = RunFolder(file.parent.parent).config.is_file()
        return not in_run and not same_file(source, file) and is_own_weights(file)

    expect_replaceable([out], is_own, "choose another file with --out")


def is_own_weights(file: Path) -> bool:
    """True if a file holds weights that this library wrote. Only its header is read."""
    try:
        with safe_open(file, framework="pt") as weights:
            return KEY in (weights.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return False
