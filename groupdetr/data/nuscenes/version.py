"""A nuScenes version as a dataset: its classes, and the samples of its train and val splits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from groupdetr.data.findings import RefusedError
from groupdetr.data.fingerprint import fingerprint
from groupdetr.data.nuscenes.camera_frames import CameraFrames
from groupdetr.data.nuscenes.check import check
from groupdetr.data.nuscenes.names import CLASSES
from groupdetr.data.nuscenes.samples import Sample, read_scene_samples
from groupdetr.data.nuscenes.statistics import SceneCheckReport
from groupdetr.data.nuscenes.tables import (
    FIELDS,
    SPLITS_FILE,
    Tables,
    empty_split_finding,
    read_splits_file,
    refusal,
    splits_of_all_scenes,
)
from groupdetr.data.records import Category
from groupdetr.data.wrong_inputs import describe_run, missing_data
from groupdetr.errors import UsageError
from groupdetr.structures.json_object import JsonObject

# A folder counts as that of a version from this number of tables. Some tables may be missing.
MIN_TABLES = 3
# The names of train and val in v1.0-mini, if its splits.json has no "train".
MINI_SPLITS = {"train": "mini_train", "val": "mini_val"}


@dataclass(frozen=True, eq=False)
class NuScenes:
    """A nuScenes version. ``splits`` holds the samples of train and of val in order of time."""

    root: Path
    version: str
    splits: dict[str, tuple[Sample, ...]]

    @property
    def categories(self) -> tuple[Category, ...]:
        """The ten detection classes. Their ids are their names, because they have no others."""
        return tuple(Category(name, name) for name in CLASSES)

    def metadata(self) -> JsonObject:
        """Return what a run stores about the data that it was trained on."""
        splits = {
            name: {"version": self.version, "images": len(samples)}
            for name, samples in self.splits.items()
        }
        categories = [{"id": category.id, "name": category.name} for category in self.categories]
        return {"root": str(self.root), "categories": categories, "splits": splits}

    def fingerprint(self) -> JsonObject:
        """Return what identifies the content of train and val."""
        return fingerprint(self.categories, {name: self.splits[name] for name in ("train", "val")})


def load(data: Path | str, split: str | None = None) -> NuScenes:
    """Read the version in ``data``, a folder of tables or a folder that holds one.

    With ``split``, only that split is read, and it takes the place of both train and val.
    `DataError` for the first problem that would mislead training.
    """
    root, version = find_version(data)
    tables = Tables(root, version)
    aliases = split_aliases(root, version)
    if split is not None:
        name = aliases.get(split, split)
        aliases = {"train": name, "val": name}
    camera_frames = CameraFrames.from_tables(tables)
    samples = {
        name: read_scene_samples(tables, camera_frames, tables.scenes(name))
        for name in dict.fromkeys(aliases.values())
    }
    for name in samples:
        if not samples[name]:
            raise RefusedError(empty_split_finding(root / version / SPLITS_FILE, name))
    return NuScenes(root, version, {alias: samples[name] for alias, name in aliases.items()})


def refuse_image_folder(images: Path | str | None) -> None:
    """Raise `UsageError` if a folder of images was given beside a version, which has its own."""
    if images is not None:
        raise UsageError(
            "--images is for the annotation files of single images, not for nuScenes",
            str(images),
            "leave it out: pass the folder of a version alone",
        )


def is_version(data: Path | str) -> bool:
    """True if a folder is that of a version, or has versions inside.

    Some tables of the version may be missing.
    """
    return has_tables(Path(data)) or bool(version_names(Path(data)))


def has_tables(folder: Path) -> bool:
    """True if a folder holds enough tables to be that of a version."""
    return sum((folder / f"{name}.json").is_file() for name in FIELDS) >= MIN_TABLES


def version_names(folder: Path) -> list[str]:
    """Return the names of the folders of tables inside ``folder``."""
    return sorted(path.name for path in folder.glob("*/") if has_tables(path))


def check_version(
    data: Path | str,
    decode: bool = True,
    two_frames: bool | None = None,
    num_queries: int | None = None,
) -> SceneCheckReport:
    """Return a report of all problems of the train and val splits of the version in ``data``.

    ``two_frames`` is True if the detector also uses an earlier frame, and None if no detector is
    given. A version that has only test scenes is checked only if no detector is given.
    ``num_queries`` is that of one group.
    """
    try:
        root, version = find_version(data)
        splits = splits_of_all_scenes(version) if two_frames is None else ()
        if not splits:
            splits = tuple(split_aliases(root, version).values())
        return check(root, version, splits, decode, two_frames, num_queries)
    except RefusedError as error:
        return SceneCheckReport(Path(data), [error.finding], [])


def find_version(data: Path | str) -> tuple[Path, str]:
    """Return the root and the name of the version in ``data``.

    ``data`` is the folder of a version, or a root with a single one. `DataError` otherwise.
    """
    folder = Path(data)
    if not os.path.exists(folder):
        raise missing_data(folder)
    if has_tables(folder):
        absolute = Path(os.path.abspath(folder))  # "." has neither a name nor a parent
        return absolute.parent, absolute.name
    versions = version_names(folder)
    if len(versions) == 1:
        return folder, versions[0]
    if versions:
        what = f"the folder has {len(versions)} versions: {', '.join(versions)}"
    elif folder.is_file():
        what = "it is a file, and not the folder of a version"
    else:
        what = describe_run(folder) or "the folder has no version of nuScenes"
    raise refusal("not-one-version", folder, "", what)


def split_aliases(root: Path, version: str) -> dict[str, str]:
    """Return the names that a version has for train and val."""
    listed = read_splits_file(root / version / SPLITS_FILE)
    if version.endswith("mini") and "train" not in listed:
        return MINI_SPLITS
    return {"train": "train", "val": "val"}
