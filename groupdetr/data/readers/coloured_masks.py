"""Coloured masks in the folders of Pascal VOC, as CVAT writes them: "Segmentation mask 1.1".

There are no XML files. Every image has two PNG files of the same name: in ``SegmentationClass`` the
colour of a pixel is that of its class, and in ``SegmentationObject`` that of its object, black
where there is none. ``labelmap.txt`` has the colours of the classes, a line each:
``name:red,green,blue:parts:actions``. Objects of an image have different colours. An object has the
class that most of its pixels have. Its box is the tightest one around its mask.

The lists of ``ImageSets/Segmentation`` have the names of the images without their endings. An image
of a list that has no file of masks has no objects. Lists that do not have the name of a split, such
as ``default``, belong to train.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as coco

from groupdetr.data.findings import Findings, RefusedError, printable, refused
from groupdetr.data.formats import DataFormat, RecordLocation, SplitAnnotations
from groupdetr.data.image_decoding import open_image
from groupdetr.data.image_files import search_folder
from groupdetr.data.readers.pascal_voc_folders import ImageIndex
from groupdetr.data.readers.record_locations import RecordLocations
from groupdetr.data.readers.text_file import read_lines
from groupdetr.data.split_names import SPLIT_ALIASES
from groupdetr.structures.json_object import JsonObject

Colours = npt.NDArray[np.int64]  # [H,W]: red, green and blue of every pixel as one number

_COLOUR_FILE = "labelmap.txt"
_CLASS_FOLDER, _OBJECT_FOLDER = "SegmentationClass", "SegmentationObject"
_LINE = re.compile(r"(.+?)\s*:\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*(?::.*)?")
# Entries of labelmap.txt that are no class: pixels of no object, and the edges of objects
_NO_CLASS = ("background", "ignored")
_BLACK = 0
_EDGE = 224 << 16 | 224 << 8 | 192  # the colour of number 255 in Pascal VOC


def is_coloured_masks(data: Path) -> bool:
    """Return whether a folder has masks of classes and of objects, and a file of their colours."""
    return bool(_roots(data))


def _roots(data: Path) -> list[Path]:
    """Return the folders with masks: ``data`` alone, or those inside of an unpacked archive."""
    inside = sorted(file.parent for file in data.glob(f"*/{_COLOUR_FILE}"))
    for folders in ([data], inside):
        roots = [folder for folder in folders if _has_masks(folder)]
        if roots:
            return roots
    return []


def _has_masks(folder: Path) -> bool:
    has_folders = (folder / _CLASS_FOLDER).is_dir() and (folder / _OBJECT_FOLDER).is_dir()
    return has_folders and (folder / _COLOUR_FILE).is_file()


def read_coloured_masks(data: Path) -> dict[str, SplitAnnotations]:
    """Read a dataset of coloured masks: train, and val and test if there are lists of them.

    Raises `DataError` if the dataset cannot be read at all. Broken files become findings of the
    split.
    """
    root, *others = _roots(data)
    if others:
        datasets = " and ".join(printable(folder.name) for folder in (root, *others))
        raise refused("several-descriptions", data, f"it has several datasets: {datasets}")
    names, class_of_colour = _read_colours(root / _COLOUR_FILE)
    images = ImageIndex(root)
    locations = RecordLocations(root / _COLOUR_FILE)
    splits = {}
    for split, (source, members) in _splits(root).items():
        splits[split] = _to_coco(root, source, members, names, class_of_colour, images, locations)
    return splits


FORMAT = DataFormat("coloured masks", is_coloured_masks, read_coloured_masks)


def _read_colours(file: Path) -> tuple[list[str], dict[int, int]]:
    """Return the names of the classes, and the number of the class of every colour, from 1 on.

    The number of a colour that is none of a class is 0.
    """
    names: list[str] = []
    class_of_colour = {_BLACK: 0, _EDGE: 0}
    line_of_colour: dict[int, int] = {}
    for number, line in enumerate(read_lines(file), 1):
        text = line.strip()
        match = _LINE.fullmatch(text)
        values = [int(value) for value in match.groups()[1:]] if match else []
        if match is None or max(values) > 255:
            if not text or text[0] == "#":  # A comment, such as the first line of CVAT.
                continue
            what = f"line {number} is {printable(text)}, and not name:red,green,blue"
            raise refused("labelmap-line", file, what)
        name = match[1]
        colour = values[0] << 16 | values[1] << 8 | values[2]
        if colour in line_of_colour:
            what = f"lines {line_of_colour[colour]} and {number} have the same colour"
            raise refused("labelmap-line", file, what)
        line_of_colour[colour] = number
        if name in _NO_CLASS:
            class_of_colour[colour] = 0
        elif name in names:
            raise refused("labelmap-line", file, f"two classes are called {printable(name)}")
        else:
            names.append(name)
            class_of_colour[colour] = len(names)
    return names, class_of_colour


def _splits(root: Path) -> dict[str, tuple[Path, list[str]]]:
    """Return the names of the images of each split, and the file or folder that lists them."""
    lists: dict[str, list[Path]] = {}
    for file in sorted((root / "ImageSets" / "Segmentation").glob("*.txt")):
        lists.setdefault(SPLIT_ALIASES.get(file.stem.lower(), ""), []).append(file)
    if not lists:
        folder = root / _OBJECT_FOLDER
        files = [file.relative_to(folder) for file in search_folder(folder).images]
        return {"train": (folder, sorted(file.with_suffix("").as_posix() for file in files))}
    others = lists.pop("", [])
    splits = {split: (files[0], _listed(files)) for split, files in lists.items()}
    # A list such as trainval repeats the names of others.
    known = {name for _, members in splits.values() for name in members}
    members = [name for name in _listed(others) if name not in known]
    if members:
        source, own = splits.get("train", (others[0], []))
        splits["train"] = (source, own + members)
    return splits


def _listed(files: Sequence[Path]) -> list[str]:
    """Return the names in lists, each once."""
    lines = [line.strip().replace("\\", "/") for file in files for line in read_lines(file)]
    return list(dict.fromkeys(line for line in lines if line))


def _to_coco(
    root: Path,
    source: Path,
    members: list[str],
    names: list[str],
    class_of_colour: dict[int, int],
    images: ImageIndex,
    locations: RecordLocations,
) -> SplitAnnotations:
    findings = Findings(source)
    found: list[tuple[str, Path]] = []
    for name in members:
        # The image is where that of an XML file would be.
        image = images.find(root / "Annotations" / f"{name}.xml", "")
        if image is None:
            what = f"the image {printable(name)} is not in JPEGImages"
            findings.add("mask-image", "", what)
        else:
            found.append((name, image))
    parents = [image.parent for _, image in found]
    folder = Path(os.path.commonpath(parents)) if parents else root
    records: list[JsonObject] = []
    objects: list[JsonObject] = []
    for name, image in found:
        file = root / _OBJECT_FOLDER / f"{name}.png"
        image_id = locations.add_image(RecordLocation(str(file), ""))
        record: JsonObject = {"id": image_id, "file_name": image.relative_to(folder).as_posix()}
        records.append(record)
        if not file.is_file():
            continue
        try:
            colours = _read_pixels(file)
            classes = _read_pixels(root / _CLASS_FOLDER / f"{name}.png")
        except RefusedError as error:
            findings.append(error.finding)
            continue
        if colours.shape != classes.shape:
            sizes = [f"{width} x {height}" for height, width in (colours.shape, classes.shape)]
            what = f"it has {sizes[0]} pixels, and that of {_CLASS_FOLDER} {sizes[1]}"
            findings.add("mask-file", name, what)
            continue
        record["height"], record["width"] = colours.shape
        for colour, mask in _masks(colours):
            class_colour = _most_frequent(classes[mask])
            if class_colour not in class_of_colour:
                what = (
                    f"the object of colour {_text(colour)} has the class of {_text(class_colour)}"
                )
                findings.add("mask-colour", name, what)
            elif class_of_colour[class_colour]:
                location = RecordLocation(str(file), f"colour {_text(colour)}")
                number = locations.add_annotation(location)
                category_id = class_of_colour[class_colour]
                objects.append(_annotation(number, image_id, category_id, mask))
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    content = {"images": records, "annotations": objects, "categories": categories}
    return SplitAnnotations(content, folder, source, tuple(findings), locations)


def _read_pixels(file: Path) -> Colours:
    """Return the colours of the pixels of a file. Those of a palette are colours, too.

    `RefusedError` if it cannot be read.
    """
    try:
        with open_image(file) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.int64)
    except RefusedError as error:
        raise refused("mask-file", file, error.finding.what) from None
    return pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]


def _masks(colours: Colours) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """Yield the colour and the mask [H,W] of each object of an image."""
    for colour in np.unique(colours).tolist():
        if colour != _BLACK:
            yield colour, colours == colour


def _most_frequent(colours: Colours) -> int:
    """Return the colour that most of some pixels have."""
    values, counts = np.unique(colours, return_counts=True)
    return int(values[counts.argmax()])


def _text(colour: int) -> str:
    """Return a colour as labelmap.txt has it: red,green,blue."""
    return ",".join(map(str, colour.to_bytes(3, "big")))


def _annotation(
    number: int, image_id: int, category_id: int, mask: npt.NDArray[np.bool_]
) -> JsonObject:
    """Return the annotation of an object with a mask [H,W], and with the tightest box around it."""
    (rle,) = coco.encode(np.asfortranarray(mask[:, :, None], dtype=np.uint8))
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": coco.toBbox(rle).tolist(),
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()},
    }
