"""Arguments that are no dataset and no image: what they are, and what to pass.

The messages about the files of a dataset advise to correct the dataset. An image that a user has
named is in no dataset, so it has messages of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

from groupdetr.data.findings import Finding, RefusedError
from groupdetr.errors import DataError
from groupdetr.files.kinds import UNPACK, FileKind, holds_weights, recognise
from groupdetr.files.missing import as_typed, describe_missing

IMAGES = "pass image files (JPEG, PNG, BMP, GIF, WebP, TIFF...), folders of them, or globs"
# Code of a finding -> what to do about an image that a user has named.
REMEDIES = {
    "empty-file": "copy or download the image again",
    "truncated-image": "copy or download the image again",
    "unreadable-image": "copy or download it again, or save it in another program",
    "image-too-large": "scale the image down or cut it into tiles",
}
FRAMES = "ffmpeg -i VIDEO images/%06d.jpg"  # a command that saves the images of a video
WEIGHTS_FILE = FileKind("a file of weights", "the run comes first: groupdetr predict RUN IMAGES")
KINDS_TO_FETCH = ("a Git LFS pointer", "a web page")  # the remedy is to fetch the file itself


# Datasets


def missing_data(path: Path) -> RefusedError:
    """Return the error for a dataset that does not exist."""
    what, remedy = describe_missing(path)
    what = what or "there is no such file or folder"
    finding = Finding("missing-data", as_typed(path), "", f"{what}; {remedy}" if remedy else what)
    return RefusedError(finding)


def expect_annotation_file(path: Path) -> None:
    """Raise `RefusedError` if a file is recognised, and is not an annotation file.

    A text that is not recognised is not refused: reading it finds out what is wrong.
    """
    if _is_file_of_run(path):
        raise _no_dataset(path, "it is a file of a run, and not a dataset")
    kind = _kind(path)
    if kind is None or kind.is_json or kind.name in ("a text file", "an empty file"):
        return
    if kind.name.startswith(KINDS_TO_FETCH) or kind.remedy == UNPACK:
        raise _no_dataset(path, f"it is {kind.name}: {kind.remedy}")
    raise _no_dataset(path, f"it is {kind.name}, and not an annotation file")


def describe_run(folder: Path) -> str:
    """Return what a folder without a known layout is, if it is a run; else an empty text."""
    if (folder / "config.yaml").is_file() and (folder / "weights").is_dir():
        return "it is the folder of a run, which `groupdetr train` wrote, and not a dataset"
    return ""


def _is_file_of_run(path: Path) -> bool:
    return any(describe_run(parent) for parent in path.absolute().parents[:3])


def _no_dataset(path: Path, what: str) -> RefusedError:
    return RefusedError(Finding("no-dataset", str(path), "", what))


# Images


def wrong_image(path: str | os.PathLike[str], error: RefusedError) -> DataError:
    """Return the error for a file that a user has named, and that cannot be read as an image.

    ``error`` is what reading it has raised. It advises to correct a dataset.
    """
    where = as_typed(path)
    code = error.finding.code
    if code == "missing-file":
        what, remedy = describe_missing(os.fspath(path))
        return DataError(what or error.what, where, remedy or "check the path")
    kind = _kind(Path(path))
    if kind is None or kind.name in ("an image", "an empty file"):
        return DataError(error.what, where, REMEDIES.get(code, IMAGES))
    remedy = IMAGES
    if kind.name == "a video":
        remedy = f"save its images as files: {FRAMES}"
    elif kind is WEIGHTS_FILE or kind.name.startswith(KINDS_TO_FETCH):
        remedy = kind.remedy
    return DataError(f"this is {kind.name}, and not an image", where, remedy)


def describe_missing_image(pattern: str) -> tuple[str, str]:
    """Return what an argument is that names no image, and what to pass; what may be empty."""
    if pattern.isdigit() and len(pattern) <= 2:
        return (
            "this is the number of a camera, and cameras are not supported",
            f"save its images as files first, and pass their folder; of a video: {FRAMES}",
        )
    what, remedy = describe_missing(pattern)
    return what, remedy or IMAGES


def _kind(path: Path) -> FileKind | None:
    """Return what a file is; None if it is not recognised, or cannot be opened."""
    try:
        if not path.is_file():
            return None
        return recognise(path) or (WEIGHTS_FILE if holds_weights(path) else None)
    except (OSError, ValueError):
        return None
