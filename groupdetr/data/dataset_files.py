"""Search for the files of a dataset: which annotation files and image folders belong to it.

The names of splits and folders may be in upper or lower case. If images may be in several folders,
the one that has the images of the annotation file is taken.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from groupdetr.data.findings import Findings, RefusedError, printable, refused
from groupdetr.data.image_files import is_image_name, is_system_folder, is_system_name
from groupdetr.data.other_formats import looks_like
from groupdetr.data.paths import ImageFolder
from groupdetr.data.split_names import SPLIT_ALIASES
from groupdetr.data.wrong_inputs import (
    describe_run,
    expect_annotation_file,
    missing_data,
    missing_images_folder,
)
from groupdetr.errors import UsageError

SPLITS = tuple(dict.fromkeys(SPLIT_ALIASES.values()))  # train, val, test
# What commands of this library write with --out, which may lead to the folder of a dataset.
_OUTPUT_FILES = (
    "check.json",
    "coco_results.json",
    "errors.json",
    "groups.json",
    "label_errors.json",
    "metrics.json",
    "predictions.json",
    "results.json",
)
WHOLE = ""  # the key of a dataset whose only annotation file has no name of a split
_MAX_NAMES = 32  # file names of an annotation file that are looked for in each folder
_BLOCK = 1 << 20  # bytes of an annotation file that are searched at once
_LONGEST_NAME = 1 << 12  # bytes; a name that begins in one block may end in the next one


class SplitFiles(NamedTuple):
    """The annotation file and the image folder of a split."""

    annotations: Path
    images: Path


DataFiles = dict[str, SplitFiles]  # 'train', 'val', 'test' -> files


class FolderLayout(NamedTuple):
    """Paths of a split relative to the root.

    ``{}`` stands for the name of the split in the dataset: train, valid, val2017 and so on. The
    images are in one of several folders.
    """

    annotations: str
    images: tuple[str, ...]


LAYOUTS = (
    FolderLayout("annotations/instances_{}.json", ("{}", "images/{}", "images")),  # COCO, CVAT
    FolderLayout("{}/_annotations.coco.json", ("{}", "{}/images")),  # Roboflow
    FolderLayout("annotations/{}.json", ("images/{}", "{}", "images")),
    FolderLayout("{}.json", ("images/{}", "images", "{}", ".")),
    FolderLayout("{}/labels.json", ("{}/data", "{}/images")),  # FiftyOne
    FolderLayout("{}/annotations.json", ("{}/images", "{}")),
)


def find_files(data: Path | str, images: Path | str | None = None) -> DataFiles:
    """Return the files of each split for a training. 'train' is always among them.

    ``data`` is a folder in one of the `LAYOUTS`, or an annotation file. ``images`` is the folder of
    the images of an annotation file. Without it, the images are searched for beside the file.
    Anything else is a `DataError` or a `UsageError`.
    """
    files = find_split_files(data, images, required="train")
    if WHOLE in files:
        return {"train": files[WHOLE]}
    if "train" not in files:
        what = f"it has a {' and a '.join(files)} split, but no train split"
        raise unknown_layout(Path(data), what)
    return files


def find_split_files(
    data: Path | str, images: Path | str | None = None, required: str = "train"
) -> DataFiles:
    """Return the files of each split that the dataset has, or those of `WHOLE`.

    If a folder could be read in several layouts, or has several years, those with the split
    ``required`` come first.
    """
    root = Path(data)
    is_folder = os.path.isdir(root)
    if is_folder and images is not None:
        raise UsageError(
            f"{root} is a folder",
            remedy="give an annotation file with --images, or the folder alone",
        )
    if not os.path.exists(root):
        raise missing_data(root)
    if not is_folder:
        expect_annotation_file(root)
    elif run := describe_run(root):
        raise refused("no-dataset", root, run)
    if images is not None:
        if not os.path.isdir(images):
            raise missing_images_folder(images)
        return {WHOLE: SplitFiles(root, Path(images))}
    try:
        if is_folder:
            return _find_in_folder(root, required)
        return {WHOLE: SplitFiles(root, _images_beside(root))}
    except OSError as error:  # no permission to read a folder
        raise unknown_layout(root, f"it cannot be searched ({error.strerror})") from None


def has_annotation_files(data: Path) -> bool:
    """Return whether a folder has an annotation file in one of the `LAYOUTS`."""
    if not data.is_dir():
        return False
    folder = _Folder(data)
    try:
        return any(next(_annotation_files(layout, folder), None) for layout in LAYOUTS)
    except OSError:  # no permission to read a folder
        return False


def unknown_layout(path: Path, what: str) -> RefusedError:
    """Return the error for a dataset whose files are not where they should be."""
    return refused("unknown-layout", path, what)


# folders


def _find_in_folder(root: Path, required: str) -> DataFiles:
    folder = _Folder(root)
    others: DataFiles = {}
    without_images: dict[str, RefusedError] = {}
    for layout in LAYOUTS:
        files, errors = _match_layout(layout, folder, required)
        if required in files:
            if required == "train" and "val" in errors:
                # A part of train must not replace it.
                raise errors["val"]
            return files
        others = others or files
        without_images = errors | without_images
    single = None if others else _single_file(root)
    if single:
        return {WHOLE: single}
    if required in without_images:
        raise without_images[required]
    if others:
        return others
    raise unknown_layout(root, _describe(root))


class _Folder:
    """A folder whose entries are found in upper or lower case."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[Path, list[str]] = {}  # of the entries of folders

    def names(self, folder: Path) -> list[str]:
        """Return the sorted names of a folder's entries, without those that a system wrote."""
        if folder not in self._names:
            entries = os.listdir(folder) if folder.is_dir() else []
            self._names[folder] = sorted(name for name in entries if not is_system_name(name))
        return self._names[folder]

    def find(self, pattern: re.Pattern[str], parent: Path) -> Iterator[tuple[Path, re.Match[str]]]:
        """Yield the entries of ``parent`` whose whole name matches."""
        for name in self.names(parent):
            if match := pattern.fullmatch(name):
                yield parent / name, match

    def subfolder(self, path: str) -> Path | None:
        """Return a subfolder. If there is none of exactly this name, upper and lower case may
        differ. None if there is none, or more than one.
        """
        folder = self.root
        for part in path.split("/"):
            names = self.names(folder)
            if part not in names:
                names = [name for name in names if name.casefold() == part.casefold()]
                if len(names) != 1:
                    return None
                (part,) = names
            folder = folder / part
        return folder if folder.is_dir() else None


class _AnnotationFile(NamedTuple):
    """An annotation file that has the name of a split in its path."""

    path: Path
    text: str  # the name of the split as written, such as "valid" or "val2017"
    year: str  # such as "2017", or ""

    @property
    def split(self) -> str:
        """Return "train", "val" or "test"."""
        return _split_of(self.text, self.year)

    def spellings(self) -> list[str]:
        """Return the names that a folder of this split may have, the most similar one first."""
        aliases = [alias for alias, split in SPLIT_ALIASES.items() if split == self.split]
        with_year = [alias + self.year for alias in aliases]
        return list(dict.fromkeys([self.text, *with_year, *aliases]))


def _split_of(text: str, year: str) -> str:
    return SPLIT_ALIASES[text.lower().removesuffix(year)]


def _match_layout(
    layout: FolderLayout, folder: _Folder, required: str
) -> tuple[DataFiles, dict[str, RefusedError]]:
    """Return the splits of a folder in this layout, and the errors of splits without images.

    Both are empty if the folder has another layout. If there are several years, as in val2014 and
    val2017, they are those of the newest one that has the split ``required``.
    """
    root = folder.root
    annotations_by_year: dict[str, dict[str, _AnnotationFile]] = {}
    for file in _annotation_files(layout, folder):
        annotations = annotations_by_year.setdefault(file.year, {})
        if file.split in annotations:
            both = (annotations[file.split].path, file.path)
            one, other = (printable(path.relative_to(root).as_posix()) for path in both)
            raise unknown_layout(root, f"its {file.split} split could be {one} or {other}")
        annotations[file.split] = file
    if not annotations_by_year:
        return {}, {}
    files_by_year: dict[str, DataFiles] = {}
    errors_by_year: dict[str, dict[str, RefusedError]] = {}
    for year, annotations in annotations_by_year.items():
        files = files_by_year[year] = {}
        errors = errors_by_year[year] = {}
        for name in SPLITS:
            if name not in annotations:
                continue
            file = annotations[name]
            images = _folder_of_split(layout, folder, file)
            if images is not None:
                files[name] = SplitFiles(file.path, images)
            else:
                places = " or ".join(f"{path.format(file.text)}/" for path in layout.images)
                what = f"{printable(file.path.name)} is there, but not the folder of its images"
                errors[name] = unknown_layout(root, f"{what}, {printable(places)}")
    year = max(files_by_year, key=lambda year: (required in files_by_year[year], year))
    return files_by_year[year], errors_by_year[year]


def _annotation_files(layout: FolderLayout, folder: _Folder) -> Iterator[_AnnotationFile]:
    """Yield the annotation files of a layout, in the order of their names."""
    aliases = "|".join(SPLIT_ALIASES)
    name_pattern = rf"(?P<text>(?:{aliases})(?P<year>\d{{4}})?)"
    parts = layout.annotations.split("/")
    patterns = []
    for part in parts:
        regex = re.escape(part).replace(r"\{\}", name_pattern)
        patterns.append(re.compile(regex, re.IGNORECASE))
    paths: list[tuple[Path, dict[str, str]]] = [(folder.root, {})]
    for pattern in patterns:
        paths = [
            (path, groups | match.groupdict())
            for parent, groups in paths
            for path, match in folder.find(pattern, parent)
        ]
    for path, groups in paths:
        yield _AnnotationFile(path, groups["text"], groups["year"] or "")


def _folder_of_split(layout: FolderLayout, folder: _Folder, file: _AnnotationFile) -> Path | None:
    """Return the folder of the images of a split in this layout, None if there is none."""
    folders: list[Path] = []
    for images in layout.images:
        if images == ".":
            if any(is_image_name(name) for name in folder.names(folder.root)):
                folders.append(folder.root)
            continue
        for spelling in file.spellings():
            subfolder = folder.subfolder(images.format(spelling))
            if subfolder is not None and subfolder not in folders:
                folders.append(subfolder)
    return _best_folder(file.path, folders)


def _single_file(root: Path) -> SplitFiles | None:
    """Return the annotation file and the image folder, if there is exactly one of each."""
    annotations = _json_files(root) or _json_files(root / "annotations")
    images_dir = root / "images"
    images = _deepest_image_folder(images_dir if images_dir.is_dir() else root)
    if len(annotations) != 1 or images is None:
        return None
    return SplitFiles(annotations[0], images)


def _json_files(folder: Path) -> list[Path]:
    """Return the .json files in a folder that may be annotation files.

    Those that commands of this library write with ``--out`` do not hide the annotation file.
    """
    files = sorted(path for path in folder.glob("*.json") if not is_system_name(path.name))
    return [path for path in files if path.name not in _OUTPUT_FILES] or files


def _deepest_image_folder(folder: Path, depth: int = 3) -> Path | None:
    """Return the deepest folder that holds all the images below ``folder``."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    if any(is_image_name(entry.name) for entry in entries):
        return folder
    if depth == 0:
        return None
    with_images = []
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) and not is_system_folder(entry.name):
            subfolder = _deepest_image_folder(Path(entry), depth - 1)
            if subfolder:
                with_images.append(subfolder)
    if not with_images:
        return None
    return with_images[0] if len(with_images) == 1 else folder


# annotation files


def _images_beside(annotations: Path) -> Path:
    """Return the folder of the images of an annotation file: its own, or that of a layout.

    `UsageError` if no such folder has any of the images.
    """
    names = list(file_names(annotations))
    if not names:
        # It is no annotation file. The problem is reported when the file is read.
        return annotations.parent
    folders = [annotations.parent, *_folders_of_layouts(annotations)]
    folders += [annotations.parent / "images", annotations.parent / annotations.stem]
    counts = {folder: _count_existing(folder, names) for folder in folders}
    best = max(counts, key=lambda folder: counts[folder])
    if not counts[best]:
        raise UsageError(
            "the images of this annotation file are not beside it",
            str(annotations),
            "add --images DIR, the folder of its images",
        )
    return best


def _folders_of_layouts(annotations: Path) -> Iterator[Path]:
    """Yield the image folders of an annotation file that lies in a folder of a known layout."""
    absolute = Path(os.path.abspath(annotations))
    for layout in LAYOUTS:
        depth = layout.annotations.count("/")
        if depth >= len(absolute.parents):
            continue
        folder = _Folder(absolute.parents[depth])
        for file in _annotation_files(layout, folder):
            if file.path == absolute:
                images = _folder_of_split(layout, folder, file)
                if images is not None:
                    yield images


def _best_folder(annotations: Path, folders: Sequence[Path]) -> Path | None:
    """Return the folder that has most of the images of an annotation file, or None.

    The first one of several equal ones is returned. The file is read only if there are several.
    """
    if len(folders) < 2:
        return folders[0] if folders else None
    names = list(file_names(annotations))
    return max(folders, key=lambda folder: _count_existing(folder, names))


def _count_existing(folder: Path, names: Iterable[str]) -> int:
    """Return how many of the images ``names`` a folder has."""
    if not folder.is_dir():
        return 0
    image_folder = ImageFolder(folder)
    findings = Findings(folder)
    paths = [image_folder.locate(name, "", findings) for name in names]
    return sum(path is not None and path.is_file() for path in paths)


def file_names(annotations: Path) -> Iterator[str]:
    """Yield the first file names of images that an annotation file has, `_MAX_NAMES` at most.

    The file is searched as text up to these names, because reading a large one takes minutes. There
    are none if it cannot be read, is no JSON, or is not encoded like ASCII.
    """
    pattern = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
    names: dict[str, None] = {}
    if not annotations.is_file():
        return
    try:
        with annotations.open("rb") as file:
            text = b""
            while len(names) < _MAX_NAMES and (block := file.read(_BLOCK)):
                text = text[-_LONGEST_NAME:] + block
                for match in pattern.finditer(text):
                    name = _decode(match[1])
                    if name is not None:
                        names[name] = None
    except OSError:
        return
    yield from list(names)[:_MAX_NAMES]


def _decode(text: bytes) -> str | None:
    """Return the text that a JSON text stands for, None if it is not valid."""
    try:
        return str(json.loads(text))
    except ValueError:
        return None


# what an unknown folder looks like


def _describe(root: Path) -> str:
    """Return why a folder has no known layout, with the known layouts and the folder's entries."""
    if other_format := looks_like(root):
        return f"it looks like {other_format}; convert it to COCO JSON, YOLO or Pascal VOC"
    layouts = []
    for layout in LAYOUTS:
        folders = " or ".join(f"{images}/" for images in layout.images)
        layouts.append(f"{layout.annotations} + {folders}")
    known = "; ".join(layouts).replace("{}", "train")
    entries: list[str] = []
    for entry in os.scandir(root):
        if not is_system_name(entry.name) and not is_system_folder(entry.name):
            entries.append(f"{entry.name}/" if entry.is_dir() else entry.name)
    entries.sort()
    listed = ", ".join(printable(entry) for entry in entries[:8])
    if len(entries) > 8:
        listed += f" and {len(entries) - 8} more"
    return (
        f"it has no known layout. Looked for: {known}; one .json + one folder of images. "
        f"Found: {listed or 'nothing'}"
    )
