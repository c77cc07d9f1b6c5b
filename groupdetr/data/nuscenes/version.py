"""A nuScenes version as a data set: its classes, and the samples of train and val."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupdetr.data.findings import RefusedError
from groupdetr.data.nuscenes.camera_frames import Footage
from groupdetr.data.nuscenes.check import check
from groupdetr.data.nuscenes.names import CLASSES
from groupdetr.data.nuscenes.samples import Sample, samples_of
from groupdetr.data.nuscenes.statistics import SceneReport
from groupdetr.data.nuscenes.tables import (
    FIELDS,
    SPLITS_FILE,
    Tables,
    empty_split,
    refused,
    split_names,
    whole_split,
)
from groupdetr.data.records import Category

SEVERAL = 3  # tables in a folder make it one of a version, though some may be missing
MINI_SPLITS = {
    "train": "mini_train",
    "val": "mini_val",
}  # where there are no lists of train and val


@dataclass(frozen=True, eq=False)
class NuScenes:
    """``splits``: the samples of train and of val, by time."""

    root: Path
    version: str
    splits: dict[str, tuple[Sample, ...]]

    @property
    def categories(self) -> tuple[Category, ...]:
        """The ten classes, which have names alone."""
        return tuple(Category(name, name) for name in CLASSES)

    def card(self) -> dict[str, Any]:
        """What a run was trained on, for a file."""
        splits = {
            name: {"version": self.version, "images": len(samples)}
            for name, samples in self.splits.items()
        }
        names = [{"id": category.id, "name": category.name} for category in self.categories]
        return {"root": str(self.root), "categories": names, "splits": splits}


def load(data: Path | str, split: str | None = None) -> NuScenes:
    """The version in a folder, or of a folder that holds one; a `DataError` for the first thing that is wrong.

    ``split``: one that stands for both train and val, and nothing else is read.
    """
    root, version = located(data)
    tables, names = Tables(root, version), spelled(root, version)
    if split is not None:
        names = dict.fromkeys(names, names.get(split, split))
    footage = Footage.of(tables)
    samples = {
        name: samples_of(tables, footage, tables.scenes(name))
        for name in dict.fromkeys(names.values())
    }
    if empty := [name for name in samples if not samples[name]]:
        raise RefusedError(empty_split(root / version / SPLITS_FILE, empty[0]))
    return NuScenes(root, version, {ours: samples[name] for ours, name in names.items()})


def is_version(data: Path | str) -> bool:
    """Is it the folder of a version, or one with versions? Tables of it may be missing."""
    return holds_tables(Path(data)) or bool(versions_in(Path(data)))


def holds_tables(folder: Path) -> bool:
    return sum((folder / f"{name}.json").is_file() for name in FIELDS) >= SEVERAL


def versions_in(folder: Path) -> list[str]:
    """The names of the folders of tables."""
    return sorted(path.name for path in folder.glob("*/") if holds_tables(path))


def check_version(
    data: Path | str, decode: bool = True, two_frames: bool | None = None
) -> SceneReport:
    """Everything that is wrong with what training looks at; of a version of test scenes, with its one split.

    ``two_frames``: is an earlier frame looked at, too? None where it is not known what will be trained, if anything.
    """
    try:
        root, version = located(data)
        splits = whole_split(version) if two_frames is None else ()
        return check(
            root, version, splits or tuple(spelled(root, version).values()), decode, two_frames
        )
    except RefusedError as error:
        return SceneReport(Path(data), [error.finding], [])


def located(data: Path | str) -> tuple[Path, str]:
    """The root and the name of the version, which may be told or the only one."""
    folder = Path(data)
    if holds_tables(folder):
        whole = Path(os.path.abspath(folder))  # "." has neither a name nor a parent
        return whole.parent, whole.name
    versions = versions_in(folder)
    if len(versions) != 1:
        what = (
            f"there are {len(versions)} versions here: {', '.join(versions)}"
            if versions
            else "no version is here"
        )
        raise refused("which-version", folder, "", what)
    return folder, versions[0]


def spelled(root: Path, version: str) -> dict[str, str]:
    """How a version calls train and val."""
    own = split_names(root / version / SPLITS_FILE)
    return (
        MINI_SPLITS
        if version.endswith("mini") and "train" not in own
        else {"train": "train", "val": "val"}
    )
