"""Pascal VOC datasets: an XML file for each image, as of VOC 2007 to 2012 and as LabelImg writes.

Known folders: ``JPEGImages``, ``Annotations`` and ``ImageSets/Main``; images and XML files in one
folder, also in one folder for each split; ``images`` and ``annotations``.

Coordinates begin at 1 and include the last pixel: a box that fills an image of 10 x 10 pixels is
1, 1, 10, 10 (development kit of VOC 2012, section 4). If any corner of a dataset is 0, its
coordinates begin at 0 and do not include the last pixel.

Objects that are ``difficult`` are crowds: not trained on, and neither right nor wrong in an
evaluation.

Masks are in ``SegmentationObject``: a PNG file for each image, whose pixels are the numbers of the
objects in the order of the XML file, 0 for the background and 255 for edges that belong to none.
For instance segmentation the splits are the lists of ``ImageSets/Segmentation``, because the other
images have no masks.
"""

from __future__ import annotations

import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from xml.parsers.expat import ExpatError

import numpy as np
from faster_coco_eval.core import mask as coco

from groupdetr.data.findings import Finding, Findings, RefusedError, printable, refused
from groupdetr.data.formats import DataFormat, RecordLocation, SplitAnnotations
from groupdetr.data.image_decoding import open_image
from groupdetr.data.image_files import (
    is_image_name,
    is_system_folder,
    is_system_name,
    not_visited,
)
from groupdetr.data.readers.record_locations import RecordLocations
from groupdetr.data.readers.text_file import read_lines
from groupdetr.data.split_names import SPLIT_ALIASES
from groupdetr.structures.json_object import JsonObject

# Files with the names of the classes in their order, in the folder of the dataset. Without one, the
# classes are in alphabetical order, as the 20 classes of VOC are.
_CLASS_FILES = ("labelmap.txt", "labels.txt", "classes.txt", "predefined_classes.txt")
_MAX_BYTES = 1 << 24  # of an XML file
_IMAGE_FOLDERS = ("jpegimages", "images", "img", "imgs", "image")
_CLASS_FLAG = re.compile(r"\s+(-1|0|1)$")  # whether an image has an object of the class of a list
_MASK_FOLDER = "SegmentationObject"
_XML_FOLDERS = ("annotations", "annotation", "xmls", "xml", "labels", "ann", "anns")


def is_pascal_voc(data: Path) -> bool:
    """Return whether a folder is a Pascal VOC dataset."""
    if not data.is_dir():
        return False
    return any(_is_annotation(file) for file in islice(_xml_files(data), 5))


def read_pascal_voc(data: Path) -> dict[str, SplitAnnotations]:
    """Read a Pascal VOC dataset: train, and val and test if there are any.

    Raises `DataError` if the dataset cannot be read at all. Broken files and objects become
    findings of the split.
    """
    return _read(data, "Main", masks=False)


def read_pascal_voc_masks(data: Path, segmented_only: bool) -> dict[str, SplitAnnotations]:
    """Read a Pascal VOC dataset with the masks of the objects, where there are any.

    With ``segmented_only``, the splits are the lists of ImageSets/Segmentation, if there are such.
    """
    return _read(data, "Segmentation" if segmented_only else "Main", masks=True)


def _read(data: Path, lists: str, masks: bool) -> dict[str, SplitAnnotations]:
    """Read a dataset. ``lists`` is the folder of ImageSets with the lists of the splits."""
    root = _root(data)
    files = sorted(_xml_files(root))
    images = _ImageIndex(root)
    annotations = {}
    for file in files:
        annotations[file] = _read_file(file, images)
    splits = _splits(root, files, lists)
    names = _class_names(root, annotations)
    starts_at_zero = any(item.has_zero_corner() for item in annotations.values())
    locations = RecordLocations()
    unused = images.count - len({item.image for item in annotations.values() if item.image})
    result = {}
    for split, (source, members) in splits.items():
        chosen = []
        for file in members:
            if file not in annotations:
                annotations[file] = _without_xml(file, images)
            if masks:
                _read_masks(annotations[file], root / _MASK_FOLDER)
            chosen.append(annotations[file])
        result[split] = _to_coco(source, chosen, names, starts_at_zero, root, locations)
    first = next(iter(result))
    extra = list(_findings_of_dataset(root, unused, annotations if starts_at_zero else {}))
    result[first] = replace(result[first], findings=(*extra, *result[first].findings))
    return result


def _findings_of_dataset(
    root: Path, unused: int, with_zero: dict[Path, _Annotation]
) -> Iterator[Finding]:
    """Yield the warnings about the whole dataset.

    ``unused`` images have no XML file. ``with_zero`` are the annotations if corners begin at 0.
    """
    if unused > 0:
        what = f"{unused} images have no XML file"
        yield Finding("images-without-xml", str(root), "", what)
    for file, annotation in with_zero.items():
        if annotation.has_zero_corner():
            yield Finding("corners-from-zero", str(file), "", "a box begins at 0")
            return


FORMAT = DataFormat("Pascal VOC", is_pascal_voc, read_pascal_voc, read_pascal_voc_masks)


# files


def _root(data: Path) -> Path:
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


def _xml_files(folder: Path, depth: int = 4, visited: set[str] | None = None) -> Iterator[Path]:
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
            yield from _xml_files(folder / name, depth - 1, visited)


def _is_annotation(file: Path) -> bool:
    """Return whether the first element of an XML file is <annotation>."""
    try:
        with file.open("rb") as stream:
            head = stream.read(4096).replace(b"\0", b"")  # of UTF-16
    except OSError:
        return False
    return b"<annotation>" in head or b"<annotation " in head


class _ImageIndex:
    """Finds the image of an XML file by its name."""

    def __init__(self, root: Path) -> None:
        self._by_stem: dict[str, list[Path]] = {}
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
        for stem in (file.stem, Path(recorded_name).stem):
            candidates = self._by_stem.get(stem, [])
            nearest = [path for path in candidates if path.parent in _image_folders(file)]
            if nearest:
                return min(nearest, key=lambda path: (path.name != recorded_name, path))
            if len(candidates) == 1:
                return candidates[0]
        return None


def _image_folders(file: Path) -> Iterator[Path]:
    """Yield the folders where the image of an XML file may be: Annotations becomes JPEGImages."""
    yield file.parent
    parts = file.parent.parts
    for index in range(len(parts) - 1, -1, -1):
        if parts[index].lower() in _XML_FOLDERS:
            parent = Path(*parts[:index])
            for name in os.listdir(parent) if parent.is_dir() else ():
                if name.lower() in _IMAGE_FOLDERS:
                    yield parent.joinpath(name, *parts[index + 1 :])
            return


def _splits(
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


# one XML file


@dataclass
class _Object:
    name: str
    corners: tuple[float, float, float, float] | None  # as written; None if they cannot be used
    difficult: bool
    record: str
    number: int  # from 1 on, in the order of the file
    mask: JsonObject | None = None  # COCO's compressed run lengths


@dataclass
class _Annotation:
    """The content of an XML file."""

    file: Path
    image: Path | None = None
    recorded_name: str = ""
    size: tuple[int, int] | None = None
    objects: list[_Object] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def has_zero_corner(self) -> bool:
        """Return whether a box begins at 0, so that coordinates cannot begin at 1."""
        corners = [item.corners for item in self.objects if item.corners]
        return any(0 <= min(x0, y0) < 1 for x0, y0, _, _ in corners)


def _read_file(file: Path, images: _ImageIndex) -> _Annotation:
    findings = Findings(file)
    annotation = _Annotation(file, findings=findings)
    root = _parse_xml(file, findings)
    if root is None:
        annotation.image = images.find(file, "")
        return annotation
    # A path of Windows in <filename> has folders of somebody else's machine.
    annotation.recorded_name = PureWindowsPath(_text(root, "filename")).name
    annotation.image = images.find(file, annotation.recorded_name)
    annotation.size = _size(root)
    for number, element in enumerate(root.findall("object"), 1):
        item = _read_object(element, number, findings)
        if item is not None:
            annotation.objects.append(item)
    return annotation


def _read_masks(annotation: _Annotation, folder: Path) -> None:
    """Add the masks of the objects of an image, if there is a file of them in ``folder``."""
    file = _mask_file(annotation.file, folder)
    if not file.is_file():
        return
    try:
        with open_image(file) as image:
            mode, numbers = image.mode, np.asarray(image)
    except RefusedError as error:
        annotation.findings.append(Finding("mask-malformed", str(file), "", error.finding.what))
        return
    if numbers.ndim != 2:
        what = f"its pixels are colours (mode {mode}), and not the numbers of objects"
        annotation.findings.append(Finding("mask-malformed", str(file), "", what))
        return
    for item in annotation.objects:
        pixels = numbers == item.number
        if pixels.any():
            (rle,) = coco.encode(np.asfortranarray(pixels[:, :, None], dtype=np.uint8))
            item.mask = {"size": list(pixels.shape), "counts": rle["counts"].decode()}


def _mask_file(xml_file: Path, folder: Path) -> Path:
    """Return the file in ``folder`` that the masks of an image are in, if there is one.

    It is in the same subfolders as the XML file is in its folder.
    """
    parts = xml_file.parts
    for index in range(len(parts) - 2, -1, -1):
        if parts[index].lower() in _XML_FOLDERS:
            return folder.joinpath(*parts[index + 1 :]).with_suffix(".png")
    return folder / f"{xml_file.stem}.png"


def _without_xml(file: Path, images: _ImageIndex) -> _Annotation:
    """Return what is known of an image that a list names, and that has no XML file."""
    findings = Findings(file)
    findings.add("xml-missing", "", "there is no such file")
    return _Annotation(file, images.find(file, ""), findings=findings)


def _parse_xml(file: Path, findings: Findings) -> ElementTree.Element | None:
    try:
        if file.stat().st_size > _MAX_BYTES:
            findings.add("xml-malformed", "", f"it has more than {_MAX_BYTES:,} bytes")
            return None
        content = file.read_bytes()
    except OSError as error:
        findings.add("unreadable-text", "", f"it cannot be read ({error.strerror})")
        return None
    if b"<!ENTITY" in content:
        # Entities that contain each other would grow without end.
        findings.add("xml-malformed", "", "it defines entities")
        return None
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ExpatError, ValueError, LookupError) as error:
        findings.add("xml-malformed", "", f"it is not valid XML ({error})")
        return None
    if root.tag != "annotation":
        what = f"it begins with <{printable(root.tag)[1:-1]}>, and not with <annotation>"
        findings.add("xml-malformed", "", what)
        return None
    return root


def _read_object(element: ElementTree.Element, number: int, findings: Findings) -> _Object | None:
    record = f"object {number}"
    name = _text(element, "name")
    if not name:
        findings.add("xml-object", record, "it has no <name>")
        return None
    box = element.find("bndbox")
    if box is None:
        findings.add("xml-object", record, f"{printable(name)} has no <bndbox>")
        return None
    texts = [_text(box, tag) for tag in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x0, y0, x1, y1 = map(float, texts)
    except ValueError:
        findings.add("xml-object", record, f"the corners of {printable(name)} are {texts}")
        return None
    corners = (x0, y0, x1, y1)
    if not all(map(math.isfinite, corners)) or x1 < x0 or y1 < y0:
        what = f"the corners of {printable(name)} are {[float(x) for x in corners]}"
        findings.add("xml-object", record, what)
        return None
    # Some programs write false or Unspecified.
    is_difficult = _text(element, "difficult").lower() in ("1", "true", "yes")
    return _Object(name, corners, is_difficult, record, number)


def _text(element: ElementTree.Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Return the recorded width and height; None if there are none, so the image tells them."""
    texts = [_text(root, f"size/{tag}") for tag in ("width", "height")]
    if not all(text.isdecimal() and len(text) < 8 and int(text) > 0 for text in texts):
        return None
    return int(texts[0]), int(texts[1])


# COCO annotations


def _class_names(root: Path, annotations: dict[Path, _Annotation]) -> list[str]:
    """Return the names of the classes in their order."""
    used = {item.name for annotation in annotations.values() for item in annotation.objects}
    for name in _CLASS_FILES:
        file = root / name
        if file.is_file():
            lines = [line.strip() for line in read_lines(file)]
            if name == _CLASS_FILES[0]:  # that of CVAT: name:color:parts:actions
                lines = [line.partition(":")[0].strip() for line in lines]
            # A comment begins like the name of a class may begin.
            listed = [line for line in lines if line and (line[0] != "#" or line in used)]
            if used <= set(listed):
                is_background = listed[0] == "background" and listed[0] not in used
                return list(dict.fromkeys(listed[is_background:]))
    return sorted(used)


def _to_coco(
    source: Path,
    annotations: list[_Annotation],
    names: list[str],
    starts_at_zero: bool,
    root: Path,
    locations: RecordLocations,
) -> SplitAnnotations:
    images: list[JsonObject] = []
    objects: list[JsonObject] = []
    findings = Findings(source)
    ids = {name: number for number, name in enumerate(names, 1)}
    paths = [annotation.image for annotation in annotations if annotation.image is not None]
    folder = Path(os.path.commonpath([path.parent for path in paths])) if paths else root
    for annotation in annotations:
        findings += annotation.findings
        if annotation.image is None and not annotation.file.exists():
            continue  # the missing file was reported
        if annotation.image is None:
            name = annotation.recorded_name or annotation.file.stem
            what = f"its image {printable(name)} is neither beside it nor in a folder of images"
            findings.append(Finding("xml-image", str(annotation.file), "", what))
            continue
        image_id = locations.add_image(RecordLocation(str(annotation.file), ""))
        name = annotation.image.relative_to(folder).as_posix()
        image: JsonObject = {"id": image_id, "file_name": name}
        if annotation.size:
            image["width"], image["height"] = annotation.size
        images.append(image)
        for item in annotation.objects:
            assert item.corners is not None
            location = RecordLocation(str(annotation.file), item.record)
            entry: JsonObject = {
                "id": locations.add_annotation(location),
                "image_id": image_id,
                "category_id": ids[item.name],
                "bbox": _box(item.corners, starts_at_zero),
                "iscrowd": int(item.difficult),
            }
            if item.mask is not None:
                entry["segmentation"] = item.mask
            objects.append(entry)
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    content = {"images": images, "annotations": objects, "categories": categories}
    return SplitAnnotations(content, folder, source, tuple(findings), locations)


def _box(corners: tuple[float, float, float, float], starts_at_zero: bool) -> list[float]:
    """Return x, y, width and height of a box.

    Rounding removes the error of the subtractions, so that 12.35 - 1 is 11.35.
    """
    x0, y0, x1, y1 = corners
    if not starts_at_zero:
        x0, y0 = x0 - 1, y0 - 1
    return [round(value, 9) for value in (x0, y0, x1 - x0, y1 - y0)]
