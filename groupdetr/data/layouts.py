"""Dataset layouts: which annotation files and image folders belong to a dataset."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from groupdetr.data.coco import CocoSplit, parse, parse_content, split_holdout
from groupdetr.data.findings import Finding, Findings, RefusedError, printable, raise_first_error
from groupdetr.data.formats import DataFormat, SplitAnnotations, detect_format
from groupdetr.data.image_decoding import IMAGE_SUFFIXES
from groupdetr.data.records import Category
from groupdetr.errors import UsageError
from groupdetr.structures.json_object import JsonObject

HOLDOUT = 0.2  # fraction of the train images that becomes val if a dataset has no val split
_SPLIT_ALIASES = {  # name in a path -> split
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


class SplitFiles(NamedTuple):
    """The annotation file and the image folder of a split."""

    annotations: Path
    images: Path


DataFiles = dict[str, SplitFiles]  # 'train', 'val', 'test' -> files


class FolderLayout(NamedTuple):
    """Paths of a split relative to the root.

    ``{}`` stands for the name of the split in the dataset: train, valid, val2017 and so on.
    """

    annotations: str
    images: str


LAYOUTS = (
    FolderLayout("annotations/instances_{}.json", "{}"),  # COCO
    FolderLayout("annotations/instances_{}.json", "images/{}"),
    FolderLayout("annotations/instances_{}.json", "images"),
    FolderLayout("{}/_annotations.coco.json", "{}"),  # Roboflow
    FolderLayout("annotations/{}.json", "images/{}"),
    FolderLayout("annotations/{}.json", "images"),
    FolderLayout("{}.json", "images"),
    FolderLayout("{}.json", "{}"),
)


@dataclass(frozen=True, eq=False)
class DatasetSplits:
    """The splits of a dataset. All have the categories of train, in the same order."""

    root: Path
    splits: dict[str, CocoSplit]

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.splits["train"].categories

    def metadata(self) -> JsonObject:
        """Return what a run records about its dataset, as JSON."""
        splits = {}
        for name, split in self.splits.items():
            splits[name] = {
                "annotations": str(split.annotation_file),
                "images_dir": str(split.images_dir),
                "images": len(split),
            }
        categories = [{"id": category.id, "name": category.name} for category in self.categories]
        return {"root": str(self.root), "categories": categories, "splits": splits}


def load(
    data: Path | str, images: Path | str | None = None, seed: int = 0, masks: bool = False
) -> DatasetSplits:
    """Read a dataset. Raises `DataError` for the first problem that would mislead training.

    Images are not decoded. Segmentations are read only with ``masks``. ``seed`` selects the val
    images if the dataset has no val split. It is not the seed of a run: runs that are compared
    must share their val images.
    """
    splits, findings = read_with_findings(data, images, seed, masks)
    raise_first_error(findings)
    return splits


def read_with_findings(
    data: Path | str, images: Path | str | None = None, seed: int = 0, masks: bool = False
) -> tuple[DatasetSplits, list[Finding]]:
    """Return the valid part of a dataset, and all findings about its annotation files."""
    splits: dict[str, CocoSplit] = {}
    findings: list[Finding] = []
    data_format = detect_format(Path(data)) if images is None else None
    if data_format is not None:
        for name, annotations in _read_format(data_format, Path(data)).items():
            splits[name], findings_of_file = parse_content(annotations, name, masks)
            findings += findings_of_file
    else:
        for name, files in find_files(data, images).items():
            splits[name], findings_of_file = parse(files.annotations, files.images, name, masks)
            findings += findings_of_file
    categories = splits["train"].categories
    if categories:
        for name, split in splits.items():
            conflicts = _category_conflicts(split, categories)
            findings += conflicts
            if not conflicts:
                splits[name] = split.with_categories(categories)
    if "val" not in splits:
        splits["train"], splits["val"] = split_holdout(splits["train"], HOLDOUT, seed)
    return DatasetSplits(Path(data), splits), findings


def _read_format(data_format: DataFormat, data: Path) -> dict[str, SplitAnnotations]:
    """Return the splits of a dataset in another format than COCO's. 'train' is among them."""
    splits = data_format.read(data)
    if "train" not in splits:
        what = f"the reader of {data_format.name} returned no train split"
        raise _unknown_layout(data, what)
    return splits


def _category_conflicts(split: CocoSplit, categories: tuple[Category, ...]) -> Findings:
    """Find categories of a split that contradict those of train.

    A split may lack some of the categories.
    """
    findings = Findings(split.annotation_file)
    names = {category.id: category.name for category in categories}
    for category in split.categories:
        record = f"category {printable(category.id)}"
        name = printable(category.name)
        if category.id not in names:
            what = f"{name} is not a category of the train split"
            findings.add("category-conflict", record, what)
        elif names[category.id] != category.name:
            train_name = printable(names[category.id])
            what = f"it is {name} here and {train_name} in the train split"
            findings.add("category-conflict", record, what)
    return findings


def find_files(data: Path | str, images: Path | str | None = None) -> DataFiles:
    """Return the files of each split. 'train' is always among them.

    ``data`` is a folder in one of the `LAYOUTS`, or an annotation file with ``images``, the folder
    of its images. Anything else is a `DataError` or a `UsageError`.
    """
    root = Path(data)
    if os.path.isdir(root):
        if images is not None:
            raise UsageError(
                f"{root} is a folder",
                remedy="give an annotation file with --images, or the folder alone",
            )
        try:
            return _find_in_folder(root)
        except OSError as error:  # no permission to read a folder
            raise _unknown_layout(root, f"it cannot be searched ({error.strerror})") from None
    if not os.path.exists(root):
        raise _unknown_layout(root, "there is no such file or folder")
    if images is None:
        raise UsageError(
            f"{root} is an annotation file", remedy="add --images DIR, the folder of its images"
        )
    if not os.path.isdir(images):
        raise _unknown_layout(Path(images), "there is no such folder of images")
    return {"train": SplitFiles(root, Path(images))}


def _find_in_folder(root: Path) -> DataFiles:
    for layout in LAYOUTS:
        files = _match(layout, root)
        if "train" in files:
            return files
    single = _single_file(root)
    if single:
        return {"train": single}
    raise _unknown_layout(root, _describe(root))


def _match(layout: FolderLayout, root: Path) -> DataFiles:
    """Return the splits of ``root`` in this layout, an empty dict if it has another one.

    If there are several years, as in val2014 and val2017, the newest one with a train split and
    its images is returned.
    """
    files_by_year: dict[str, DataFiles] = {}
    for file in sorted(root.glob(layout.annotations.format("*"))):
        name_in_path = _parse_split_name(layout, file.relative_to(root).as_posix())
        if name_in_path is None:
            continue
        files = files_by_year.setdefault(name_in_path.year, {})
        split = name_in_path.split
        if split in files:
            other = files[split].annotations.name
            what = f"its {split} split could be {other} or {file.name}"
            raise _unknown_layout(root, what)
        files[split] = SplitFiles(file, root / layout.images.format(name_in_path.text))
    usable_years = []
    for year, files in files_by_year.items():
        if "train" in files and files["train"].images.is_dir():
            usable_years.append(year)
    if not usable_years:
        return {}
    return _splits_with_images(files_by_year[max(usable_years)], root)


def _splits_with_images(files: DataFiles, root: Path) -> DataFiles:
    """Return the splits whose image folder exists.

    A val split without images is an error, because a part of train must not replace it.
    """
    if "val" in files and not files["val"].images.is_dir():
        annotations, images = files["val"]
        what = f"{annotations.name} is there, but not its folder {images.name}/"
        raise _unknown_layout(root, what)
    existing: DataFiles = {}
    for name in ("train", "val", "test"):
        if name in files and files[name].images.is_dir():
            existing[name] = files[name]
    return existing


class _SplitName(NamedTuple):
    """The name of a split in a path."""

    text: str  # such as "valid" or "val2017"
    split: str  # "train", "val" or "test"
    year: str  # such as "2017", or ""


def _parse_split_name(layout: FolderLayout, annotations: str) -> _SplitName | None:
    """Return the name of the split in a path, or None if the path does not match the layout."""
    aliases = "|".join(_SPLIT_ALIASES)
    name_pattern = rf"(({aliases})(\d{{4}})?)"
    pattern = re.escape(layout.annotations).replace(r"\{\}", name_pattern)
    match = re.fullmatch(pattern, annotations)
    if match is None:
        return None
    return _SplitName(match[1], _SPLIT_ALIASES[match[2]], match[3] or "")


def _single_file(root: Path) -> SplitFiles | None:
    """Return the annotation file and the image folder, if there is exactly one of each."""
    annotations = sorted(root.glob("*.json")) or sorted(root.glob("annotations/*.json"))
    images_dir = root / "images"
    images = _image_folder(images_dir if images_dir.is_dir() else root)
    if len(annotations) != 1 or images is None:
        return None
    return SplitFiles(annotations[0], images)


def _image_folder(folder: Path, depth: int = 3) -> Path | None:
    """Return the deepest folder that holds all the images below ``folder``."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    if any(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in entries):
        return folder
    if depth == 0:
        return None
    with_images = []
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            subfolder = _image_folder(Path(entry), depth - 1)
            if subfolder:
                with_images.append(subfolder)
    if not with_images:
        return None
    return with_images[0] if len(with_images) == 1 else folder


def _unknown_layout(path: Path, what: str) -> RefusedError:
    return RefusedError(Finding("unknown-layout", str(path), "", what))


def _describe(root: Path) -> str:
    """Return why a folder has no known layout, with the known layouts and the folder's entries."""
    if other_format := _other_format(root):
        return f"it looks like {other_format}, which is not supported yet; convert it to COCO JSON"
    layouts = [f"{layout.annotations} + {layout.images}/" for layout in LAYOUTS]
    known = "; ".join(layouts).replace("{}", "train")
    entries: list[str] = []
    for entry in os.scandir(root):
        entries.append(f"{entry.name}/" if entry.is_dir() else entry.name)
    entries.sort()
    listed = ", ".join(printable(entry) for entry in entries[:8])
    if len(entries) > 8:
        listed += f" and {len(entries) - 8} more"
    return (
        f"it has no known layout. Looked for: {known}; one .json + one folder of images. "
        f"Found: {listed or 'nothing'}"
    )


def _other_format(root: Path) -> str:
    """Return the name of a dataset format that is not supported, or an empty text."""
    patterns_by_format = {
        "a Pascal VOC dataset": ("JPEGImages", "Annotations/*.xml", "*/Annotations"),
        "a YOLO dataset": ("labels/**/*.txt", "*/labels/*.txt", "data.y*ml"),
    }
    for format_name, patterns in patterns_by_format.items():
        for pattern in patterns:
            if any(root.glob(pattern)):
                return format_name
    return ""
