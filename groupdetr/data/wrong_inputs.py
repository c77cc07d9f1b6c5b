"""Errors for arguments that should be datasets or images, and are something else.

They say what the argument is, and what to pass. The messages about the images of a dataset advise
to correct the dataset. An image that a user has named is in no dataset, so it has messages of its
own.
"""

from __future__ import annotations

import os
from pathlib import Path

from groupdetr.data.findings import Finding, RefusedError, refused
from groupdetr.errors import DataError
from groupdetr.files.kinds import (
    EMPTY,
    IMAGE,
    TEXT,
    VIDEO,
    FileKind,
    holds_weights,
    is_run,
    recognise,
    run_around,
)
from groupdetr.files.missing import as_typed, describe_missing

PASS_IMAGES = "pass image files (JPEG, PNG, BMP, GIF, WebP, TIFF...), folders of them, or globs"
# Code of a finding -> what to do about an image that a user has named.
IMAGE_REMEDIES = {
    "empty-file": "copy or download the image again",
    "truncated-image": "copy or download the image again",
    "unreadable-image": "copy or download it again, or save it in another program",
    "image-too-large": "scale the image down or cut it into tiles",
}
SAVE_FRAMES = "ffmpeg -i VIDEO images/%06d.jpg"  # a command that saves the images of a video
RUN_FIRST = "the run comes first: groupdetr predict RUN IMAGES"
WEIGHTS_FILE = FileKind("a file of weights", RUN_FIRST)


# Datasets


def missing_data(path: Path) -> RefusedError:
    """Return the error for a dataset that does not exist."""
    what, remedy = describe_missing(path)
    what = what or "there is no such file or folder"
    finding = Finding("missing-data", as_typed(path), "", f"{what}; {remedy}" if remedy else what)
    return RefusedError(finding)


def missing_images_folder(path: str | os.PathLike[str]) -> RefusedError:
    """Return the error for a folder of images that does not exist, or is a file."""
    what, remedy = "it is a file, and not a folder of images", ""
    if not os.path.exists(path):
        described, remedy = describe_missing(path)
        what = described or "there is no such folder of images"
    what = f"{what}; {remedy}" if remedy else what
    return RefusedError(Finding("missing-images-folder", as_typed(path), "", what))


def expect_annotation_file(path: Path) -> None:
    """Raise `RefusedError` if a file is recognised, and is not an annotation file.

    A text that is not recognised is not refused: reading it finds out what is wrong.
    """
    if run_around(path) is not None:
        raise _no_dataset(path, "it is a file of a run, and not a dataset")
    kind = _recognise(path)
    if kind is None or kind.is_json or kind in (TEXT, EMPTY):
        return
    if kind.stands_for_another:
        raise _no_dataset(path, f"it is {kind.name}: {kind.remedy}")
    raise _no_dataset(path, f"it is {kind.name}, and not an annotation file")


def describe_run(folder: Path) -> str:
    """Return what a folder without a known layout is, if it is a run; else an empty text."""
    if is_run(folder):
        return "it is the folder of a run, which `groupdetr train` wrote, and not a dataset"
    return ""


def _no_dataset(path: Path, what: str) -> RefusedError:
    return refused("no-dataset", path, what)


# Images


def wrong_image(
    path: str | os.PathLike[str], error: RefusedError, named: str | os.PathLike[str] = ""
) -> DataError:
    """Return the error for a file that a user has named, and that cannot be read as an image.

    ``error`` is what reading it has raised. It advises to correct a dataset. ``named`` is what the
    user calls the file, if that is not its path, as for one that was downloaded.
    """
    where = as_typed(named or path)
    code = error.finding.code
    if code == "missing-file":
        what, remedy = describe_missing(os.fspath(path))
        return DataError(what or error.what, where, remedy or "check the path")
    kind = _recognise(Path(path))
    if kind == IMAGE and code == "not-an-image":  # HEIC, or one that is damaged at its beginning
        what = "this image has a format that is not read, or it is damaged"
        return DataError(what, where, "save it as JPEG or PNG in another program")
    if kind is None or kind in (IMAGE, EMPTY):
        return DataError(error.what, where, IMAGE_REMEDIES.get(code, PASS_IMAGES))
    remedy = PASS_IMAGES
    if kind == VIDEO:
        remedy = (
            "pass it alone: groupdetr predict RUN VIDEO, or Detector.video in Python; or save its "
            f"images as files: {SAVE_FRAMES}"
        )
    elif kind == WEIGHTS_FILE or kind.stands_for_another:
        remedy = kind.remedy
    return DataError(f"this is {kind.name}, and not an image", where, remedy)


def describe_missing_image(pattern: str) -> tuple[str, str]:
    """Return what an argument is that names no image, and what to pass; what may be empty."""
    what, remedy = describe_missing(pattern)
    return what, remedy or PASS_IMAGES


def _recognise(path: Path) -> FileKind | None:
    """Return what a file is; None if it is not recognised, or cannot be opened."""
    try:
        if not path.is_file():
            return None
        return recognise(path) or (WEIGHTS_FILE if holds_weights(path) else None)
    except (OSError, ValueError):
        return None
