"""Which files make up a data set, told from the shape of its folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from groupdetr.data.coco import CocoSplit, parse, split_holdout
from groupdetr.data.findings import Finding, Findings, RefusedError, raise_first_error, shown
from groupdetr.data.records import Category
from groupdetr.errors import UsageError

HOLDOUT = 0.2  # part of the images that becomes val where a data set has none
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif", ".jp2")
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class SplitFiles(NamedTuple):
    """The two ends of a split."""

    annotations: Path
    images: Path


DataFiles = dict[str, SplitFiles]  # 'train', 'val', 'test' -> files


class Layout(NamedTuple):
    """A shape of folder; ``{}`` is the split as the data set spells it: train, valid, val2017..."""

    annotations: str
    images: str


LAYOUTS = (
    Layout("annotations/instances_{}.json", "{}"),  # COCO
    Layout("annotations/instances_{}.json", "images/{}"),
    Layout("annotations/instances_{}.json", "images"),
    Layout("{}/_annotations.coco.json", "{}"),  # Roboflow
    Layout("annotations/{}.json", "images/{}"),
    Layout("annotations/{}.json", "images"),
    Layout("{}.json", "images"),
    Layout("{}.json", "{}"),
)


@dataclass(frozen=True, eq=False)
class DataSet:
    """The splits of a data set; all have the categories of train, in the same order."""

    root: Path
    splits: dict[str, CocoSplit]

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.splits["train"].categories

    def card(self) -> dict[str, Any]:
        """What a run was trained on, for a file."""
        splits = {
            name: {
                "annotations": str(split.annotation_file),
                "images_dir": str(split.images_dir),
                "images": len(split),
            }
            for name, split in self.splits.items()
        }
        names = [{"id": category.id, "name": category.name} for category in self.categories]
        return {"root": str(self.root), "categories": names, "splits": splits}


def load(
    data: Path | str, images: Path | str | None = None, seed: int = 0, masks: bool = False
) -> DataSet:
    """Read a data set; DataError for the first thing that would mislead training. Pictures are not looked into, and
    segmentations only if ``masks`` are asked for.

    ``seed`` chooses the val images where the data set has no val split. It is not the seed of a run: runs that are
    to be compared must share their val images.
    """
    dataset, findings = survey(data, images, seed, masks)
    raise_first_error(findings)
    return dataset


def survey(
    data: Path | str, images: Path | str | None = None, seed: int = 0, masks: bool = False
) -> tuple[DataSet, list[Finding]]:
    """The sound part of a data set, and all that is wrong with its annotation files."""
    parsed = {name: parse(*files, name, masks) for name, files in find(data, images).items()}
    findings = [finding for _, found in parsed.values() for finding in found]
    splits = {name: split for name, (split, _) in parsed.items()}
    categories = splits["train"].categories
    for name, split in splits.items() if categories else ():
        conflicts = _conflicts(split, categories)
        findings += conflicts
        if not conflicts:
            splits[name] = split.with_categories(categories)
    if "val" not in splits:
        splits["train"], splits["val"] = split_holdout(splits["train"], HOLDOUT, seed)
    return DataSet(Path(data), splits), findings


def _conflicts(split: CocoSplit, categories: tuple[Category, ...]) -> Findings:
    """What in a split contradicts the categories of train; to lack some of them is no contradiction."""
    found = Findings(split.annotation_file)
    names = {category.id: category.name for category in categories}
    for category in split.categories:
        record = f"category {shown(category.id)}"
        if category.id not in names:
            found.add(
                "category-conflict",
                record,
                f"{shown(category.name)} is not a category of the train split",
            )
        elif names[category.id] != category.name:
            other = shown(names[category.id])
            found.add(
                "category-conflict",
                record,
                f"it is {shown(category.name)} here and {other} in the train split",
            )
    return found


def find(data: Path | str, images: Path | str | None = None) -> DataFiles:
    """The files of each split; 'train' is always among them. A folder of no known layout is a DataError."""
    root = Path(data)
    if os.path.isdir(root):
        if images is not None:
            raise UsageError(
                f"{root} is a folder",
                remedy="give an annotation file with --images, or the folder alone",
            )
        try:
            return _find_in_folder(root)
        except OSError as error:  # a folder that may not be read
            raise _unknown(root, f"it cannot be searched ({error.strerror})") from None
    if not os.path.exists(root):
        raise _unknown(root, "there is no such file or folder")
    if images is None:
        raise UsageError(
            f"{root} is an annotation file", remedy="add --images DIR, the folder of its pictures"
        )
    if not os.path.isdir(images):
        raise _unknown(Path(images), "there is no such folder of images")
    return {"train": SplitFiles(root, Path(images))}


def _find_in_folder(root: Path) -> DataFiles:
    for layout in LAYOUTS:
        if "train" in (files := _match(layout, root)):
            return files
    if single := _single(root):
        return {"train": single}
    raise _unknown(root, _describe(root))


def _match(layout: Layout, root: Path) -> DataFiles:
    """The splits of ``root`` in this layout. Of several years, the newest that has a train split."""
    years: dict[str, DataFiles] = {}
    for file in sorted(root.glob(layout.annotations.format("*"))):
        if spelled := _spelled(layout, file.relative_to(root).as_posix()):
            spelling, name, year = spelled
            files = years.setdefault(year, {})
            if name in files:
                raise _unknown(
                    root, f"its {name} split could be {files[name].annotations.name} or {file.name}"
                )
            files[name] = SplitFiles(file, root / layout.images.format(spelling))
    usable = sorted(
        year for year, files in years.items() if "train" in files and files["train"].images.is_dir()
    )
    return _with_images(years[usable[-1]], root) if usable else {}


def _with_images(files: DataFiles, root: Path) -> DataFiles:
    """The splits whose pictures are there. A val split without them must not be replaced by a part of train."""
    if "val" in files and not files["val"].images.is_dir():
        raise _unknown(
            root,
            f"{files['val'].annotations.name} is there, but not its folder {files['val'].images.name}/",
        )
    return {
        name: files[name]
        for name in ("train", "val", "test")
        if name in files and files[name].images.is_dir()
    }


def _spelled(layout: Layout, annotations: str) -> tuple[str, str, str] | None:
    """How a path of the layout spells its split, as (spelling, split, year)."""
    pattern = re.escape(layout.annotations).replace(r"\{\}", rf"(({'|'.join(_SPLITS)})(\d{{4}})?)")
    found = re.fullmatch(pattern, annotations)
    return (found[1], _SPLITS[found[2]], found[3] or "") if found else None


def _single(root: Path) -> SplitFiles | None:
    """One annotation file and one folder of pictures: nothing else that could be meant."""
    annotations = sorted(root.glob("*.json")) or sorted(root.glob("annotations/*.json"))
    pictures = _picture_folder(root / "images" if (root / "images").is_dir() else root)
    return SplitFiles(annotations[0], pictures) if len(annotations) == 1 and pictures else None


def _picture_folder(folder: Path, depth: int = 3) -> Path | None:
    """The deepest folder that holds all the pictures below ``folder``."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    if any(entry.name.lower().endswith(_PICTURES) for entry in entries):
        return folder
    if depth == 0:
        return None
    below = [
        _picture_folder(Path(entry), depth - 1)
        for entry in entries
        if entry.is_dir(follow_symlinks=False)
    ]
    holding = [sub for sub in below if sub]
    return holding[0] if len(holding) == 1 else folder if holding else None


def _unknown(place: Path, what: str) -> RefusedError:
    return RefusedError(Finding("unknown-layout", str(place), "", what))


def _describe(root: Path) -> str:
    if kind := _foreign(root):
        return f"it looks like {kind}, which is not read yet; convert it to COCO JSON"
    wanted = "; ".join(
        f"{layout.annotations} + {layout.images}/".replace("{}", "train") for layout in LAYOUTS
    )
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(root))
    there = ", ".join(map(shown, entries[:8])) + (
        f" and {len(entries) - 8} more" if len(entries) > 8 else ""
    )
    return f"it has no known layout. Looked for: {wanted}; one .json + one folder of images. Found: {there or 'nothing'}"


def _foreign(root: Path) -> str:
    """The name of a layout that others read and we do not, or nothing."""
    if (
        any(root.glob("JPEGImages"))
        or any(root.glob("Annotations/*.xml"))
        or any(root.glob("*/Annotations"))
    ):
        return "a Pascal VOC data set"
    labels = any(root.glob("labels/**/*.txt")) or any(root.glob("*/labels/*.txt"))
    if labels or any(root.glob("data.y*ml")):
        return "a YOLO data set"
    return ""
