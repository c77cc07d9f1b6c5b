"""The files of a Pascal VOC dataset: its XML files, their images, and the lists of its splits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from groupdetr.data.findings import printable, refused
from groupdetr.data.image_files import (
    is_image_name,
    is_system_folder,
    is_system_name,
    not_visited,
)
from groupdetr.data.readers.text_file import read_lines
from groupdetr.data.split_names import SPLIT_ALIASES

XML_FOLDERS = ("annotations", "annotation", "xmls", "xml", "labels", "ann", "anns")
_IMAGE_FOLDERS = ("jpegimages", "images", "img", "imgs", "image")
_CLASS_FLAG = re.compile(r"\s+(-1|0|1)$")  # whether an image has an object of the class of a list


def dataset_folder(data: Path) -> Path:
    """Return the folder that has Annotations and ImageSets, such as VOCdevkit/VOC2007."""
    for pattern in (".", "*", "*/*"):
        folders = [lists.parent for lists in sorted(data.glob(f"{pattern}/ImageSets"))]
        folders = [folder for folder in folders if (folder / "Annotations").is_dir()]
        if len(folders) > 1:
            names = " and ".join(printable(folder.name) for folder in folders)
            raise refused("several-years", data, f"it has {names}")
        if folders:
            return folders[0]
    return data


def xml_files(folder: Path, depth: int = 4, visited: set[str] | None = None) -> Iterator[Path]:
    """Yield the XML files of a folder and its subfolders, of each folder once."""
    visited = {os.path.realpath(folder)} if visited is None else visited
    with os.scandir(folder) as entries:
        folders = []
        for entry in entries:
            if entry.name.lower().endswith(".xml") and not is_system_name(entry.name):
                yield Path(entry.path)
            elif entry.is_dir() and not is_system_folder(entry.name) and entry.name[0] != ".":
                folders.append(entry.name)
    if depth:
        for name in not_visited(folder, folders, visited):
            yield from xml_files(folder / name, depth - 1, visited)


def is_annotation(file: Path) -> bool:
    """Return whether the first element of an XML file is <annotation>."""
    try:
        with file.open("rb") as stream:
            head = stream.read(4096).replace(b"\0", b"")  # of UTF-16
    except OSError:
        return False
    return b"<annotation>" in head or b"<annotation " in head


class ImageIndex:
    """Finds the image of an XML file by its name."""

    def __init__(self, root: Path) -> None:
        self._by_stem: dict[str, list[Path]] = {}
        # folder of XML files -> the folders where their images may be
        self._image_folders: dict[Path, set[Path]] = {}
        self.count = 0
        visited = {os.path.realpath(root)}
        for parent, folders, names in os.walk(root, followlinks=True):
            own = (name for name in folders if not is_system_folder(name))
            folders[:] = not_visited(parent, own, visited)
            if Path(parent).name.lower() in ("segmentationclass", "segmentationobject"):
                continue
            for name in names:
                if is_image_name(name):
                    path = Path(parent, name)
                    self._by_stem.setdefault(path.stem, []).append(path)
                    self.count += 1

    def find(self, file: Path, recorded_name: str) -> Path | None:
        """Return the image beside an XML file, or in the folder of the images.

        ``recorded_name`` is what the file says; it counts if there is no image of the same name as
        the XML file, or several with other endings.
        """
        if file.parent not in self._image_folders:
            self._image_folders[file.parent] = set(_image_folders(file.parent))
        folders = self._image_folders[file.parent]
        for stem in (file.stem, Path(recorded_name).stem):
            candidates = self._by_stem.get(stem, [])
            nearest = [path for path in candidates if path.parent in folders]
            if nearest:
                return min(nearest, key=lambda path: (path.name != recorded_name, path))
            if len(candidates) == 1:
                return candidates[0]
        return None


def _image_folders(folder: Path) -> Iterator[Path]:
    """Yield where images of the XML files in ``folder`` may be: Annotations becomes JPEGImages."""
    yield folder
    parts = folder.parts
    for index in range(len(parts) - 1, -1, -1):
        if parts[index].lower() in XML_FOLDERS:
            parent = Path(*parts[:index])
            for name in os.listdir(parent) if parent.is_dir() else ():
                if name.lower() in _IMAGE_FOLDERS:
                    yield parent.joinpath(name, *parts[index + 1 :])
            return


def read_splits(
    root: Path, files: Sequence[Path], folder: str = "Main"
) -> dict[str, tuple[Path, list[Path]]]:
    """Return the XML files of each split, with the file or the folder that lists them.

    ``folder`` is that of ImageSets with the lists. Without lists in it, they are those of Main.
    """
    lists: dict[str, Path] = {}
    for name in dict.fromkeys((folder, "Main")):
        found_lists = sorted((root / "ImageSets" / name).glob("*.txt"))
        lists = lists or {file.stem.lower(): file for file in found_lists}
    by_name = _by_name(root, files) if lists else {}
    splits = {}
    for stem, file in lists.items():
        if split := SPLIT_ALIASES.get(stem):
            splits[split] = (file, _listed(file, by_name))
    if "trainval" in lists and "train" not in splits:
        splits["train"] = (lists["trainval"], _listed(lists["trainval"], by_name))
    if splits:
        return splits
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of_path(file.relative_to(root)), []).append(file)
    if "" in by_split:
        # Files outside of the folders of splits belong to train.
        by_split["train"] = sorted(by_split.pop("") + by_split.get("train", []))
    folders = {}
    for split, members in by_split.items():
        folders[split] = (Path(os.path.commonpath([file.parent for file in members])), members)
    return folders


def _by_name(root: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Return the XML files by the names that a list may have for them.

    These are the name of the file without its ending, and the same with the folders that it is in,
    as CVAT writes them: ``camera/1`` is ``Annotations/camera/1.xml``.
    """
    by_name = {}
    for file in files:
        *folders, _ = file.relative_to(root).parts
        for start in range(len(folders) + 1):
            by_name["/".join([*folders[start:], file.stem])] = file
    return by_name


def _listed(file: Path, by_name: dict[str, Path]) -> list[Path]:
    """Return the XML files of the names in a list, in its order.

    A name may have spaces, and be followed by -1, 0 or 1, as in the lists of a class. Some programs
    write the names of the images, with their endings.
    """
    names = []
    for line in read_lines(file):
        name = line.strip().replace("\\", "/")
        if name and name not in by_name:
            name = _CLASS_FLAG.sub("", name)
        if name and name not in by_name and is_image_name(name):
            name = str(PurePosixPath(name).with_suffix(""))
            name = name if name in by_name else PurePosixPath(name).name
        if name:
            names.append(name)
    folder = next(iter(by_name.values())).parent if by_name else file.parent
    listed = [by_name.get(name, folder / f"{name}.xml") for name in names]
    return list(dict.fromkeys(listed))


def _split_of_path(path: Path) -> str:
    for part in path.parts[:-1]:
        if split := SPLIT_ALIASES.get(part.lower()):
            return split
    return ""
