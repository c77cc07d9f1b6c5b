"""`groupdetr convert`: a dataset in another format."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from groupdetr.console.output import create_console
from groupdetr.console.progress import with_progress
from groupdetr.data import conversion
from groupdetr.data.conversion import Conversion, describe, read_splits
from groupdetr.data.nuscenes.version import is_version
from groupdetr.errors import UsageError
from groupdetr.structures.json_object import JsonObject


@dataclass(frozen=True)
class ConvertResult:
    """The result of `convert`: the folder, the numbers, and what the format could not hold."""

    conversion: Conversion

    @property
    def folder(self) -> Path:
        """The folder of the new dataset."""
        return self.conversion.folder

    def to_json(self) -> JsonObject:
        """Return the folder, the numbers of images and annotations, and what was lost."""
        return {
            "folder": str(self.folder),
            "images": self.conversion.images,
            "annotations": self.conversion.annotations,
            "not_as_in_the_source": self.conversion.notes,
        }

    def show(self) -> None:
        """Print the result."""
        console = create_console()
        for line in describe(self.conversion):
            console.print(line)


def convert(
    data: str | Path,
    to: Literal["coco", "yolo", "voc"],
    out: str | Path,
    images: str | Path | None = None,
    *,
    val_fraction: float | None = None,
    seed: int = 0,
    link: bool = False,
) -> ConvertResult:
    """Write a dataset as COCO, YOLO or Pascal VOC to a new folder, and return what was written.

    The keywords are the options of `groupdetr convert`: ``val_fraction`` of the train images become
    val, selected by ``seed``, if there is no val split; ``link`` links the images.

    `DataError` for the first problem of the dataset that would mislead training. `UsageError` if
    the folder is not empty, or lies in the dataset.

    >>> groupdetr.convert("data/mine", "yolo", "data/mine-yolo").folder
    """
    data, out = Path(data), Path(out)
    images = Path(images) if images is not None else None
    if to not in conversion.WRITERS:
        raise UsageError(f"there is no format {to!r} to write", remedy="choose coco, yolo or voc")
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise UsageError(f"val_fraction is {val_fraction}", remedy="choose one between 0 and 1")
    if is_version(data):
        raise UsageError("scenes of nuScenes cannot be converted", str(data))
    _expect_new_folder(data, images, out)
    splits = read_splits(data, images, val_fraction, seed)
    return ConvertResult(conversion.write(splits, to, out, link, with_progress))


def convert_command(
    *,
    data: Path,
    to: Literal["coco", "yolo", "voc"],
    out: Path,
    images: Path | None,
    val_fraction: float | None,
    seed: int,
    link: bool,
) -> ConvertResult:
    """Convert a dataset. The arguments are the options of `groupdetr convert`."""
    return convert(data, to, out, images, val_fraction=val_fraction, seed=seed, link=link)


def _expect_new_folder(data: Path, images: Path | None, out: Path) -> None:
    """Raise `UsageError` unless a folder is new or empty, and outside of the dataset."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("the output folder is not empty", str(out), "choose a new one with --out")
    folders = [data] if data.is_dir() else []
    if images is not None:
        folders.append(images)
    for folder in folders:
        if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder)):
            raise UsageError(
                "the output folder is inside of the dataset",
                str(out),
                "choose one outside of it with --out",
            )
