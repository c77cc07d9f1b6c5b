"""Writing Pascal VOC datasets: JPEGImages, Annotations, ImageSets and SegmentationObject."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groupdetr.data.findings import Findings, printable
from groupdetr.data.image_transform import ImageTransform
from groupdetr.data.mask_rules import parse_segmentation
from groupdetr.data.writers.target import (
    SourceImage,
    SourceSplit,
    Target,
    flat_names,
    with_boxes_inside,
    with_image_endings,
)
from groupdetr.errors import DataError
from groupdetr.structures.json_object import JsonObject

# Characters that XML cannot hold, and those that end a line of labels.txt
_NOT_IN_NAMES = re.compile("[\x00-\x1f\x85\u2028\u2029\ud800-\udfff\ufffe\uffff]")
_MAX_OBJECTS = 254  # of an image with masks: 0 is the background, 255 an edge


def write_pascal_voc(splits: Sequence[SourceSplit], target: Target) -> None:
    """Write a Pascal VOC dataset. Coordinates begin at 1; crowds become difficult objects.

    The format has no list of classes. Their names are in labels.txt, in their order. The masks of
    an image are written if each of its objects has one. A pixel belongs to one object. A corner
    below 1 would make readers take all corners as counted from 0, and a box is a pixel wide and
    high at least, because its last pixel belongs to it.

    `DataError` for a name of a class that XML cannot hold.
    """
    for category in splits[0].categories:
        if _NOT_IN_NAMES.search(category["name"]):
            raise DataError(
                f"the name of class {category['id']} is {printable(category['name'])}, and XML "
                "cannot hold all of its characters",
                remedy="rename the class, or convert to another format: --to coco, --to yolo",
            )
    splits = [with_image_endings(split, target) for split in splits]
    keys = {}  # images of two splits may have the same name
    for split in splits:
        for image in split.images:
            keys[split.name, image.file_name] = PurePosixPath(split.name) / image.file_name
    flat = flat_names(keys.values())
    for split in splits:
        names = {item["id"]: item["name"] for item in split.categories}
        stems, segmented = [], []
        for source in target.progress(split.images, split.name):
            image = with_boxes_inside(source, target)
            name = flat[keys[split.name, image.file_name]]
            if name != image.file_name.name:
                target.note("images renamed, because two would share one annotation file")
            stems.append(PurePosixPath(name).stem)
            target.copy_turned_image(image, PurePosixPath("JPEGImages", name))
            numbers = _object_numbers(image, target)
            if numbers is not None:
                segmented.append(stems[-1])
                path = PurePosixPath("SegmentationObject", f"{stems[-1]}.png")
                target.write_image(_png(numbers), path)
            text = _annotation(image, name, names, numbers is not None, target)
            target.write_file(f"Annotations/{stems[-1]}.xml", text)
        text = "".join(f"{stem}\n" for stem in stems)
        target.write_file(f"ImageSets/Main/{split.name}.txt", text)
        if segmented:
            text = "".join(f"{stem}\n" for stem in segmented)
            target.write_file(f"ImageSets/Segmentation/{split.name}.txt", text)
    classes = "".join(f"{item['name']}\n" for item in splits[0].categories)
    target.write_file("labels.txt", classes)


def _object_numbers(image: SourceImage, target: Target) -> NDArray[np.uint8] | None:
    """Return the pixels [H,W] of the file of masks: the number of the object, 0 for the background.

    None for an image that has an object without a mask, or too many objects.
    """
    with_mask = [bool(annotation.get("segmentation")) for annotation in image.annotations]
    if not any(with_mask):
        return None
    if not all(with_mask) or len(with_mask) > _MAX_OBJECTS:
        target.note(
            "masks left out, because not every object of their image has one", sum(with_mask)
        )
        return None
    size = (image.width, image.height)
    masks = []
    for annotation in image.annotations:
        segmentation = parse_segmentation(annotation["segmentation"], size, "", Findings(""))
        if segmentation is None:
            target.note("masks left out, because one of their image is malformed", len(with_mask))
            return None
        masks.append(segmentation.rasterise(ImageTransform(), (image.height, image.width)))
    pixels = np.zeros((image.height, image.width), dtype=np.uint8)
    areas = [int(mask.pixels.sum()) for mask in masks]
    # The largest ones first, so that small objects are in front of them.
    for index in sorted(range(len(masks)), key=lambda i: -areas[i]):
        left, top, width, height = masks[index].window
        window = pixels[top : top + height, left : left + width]
        window[masks[index].pixels] = index + 1
    hidden = sum(int((pixels == number).sum()) < area for number, area in enumerate(areas, 1))
    target.note("masks that lost the pixels that another one has, too", hidden)
    return pixels


def _png(numbers: NDArray[np.uint8]) -> bytes:
    """Return a PNG file with a palette: the colours of VOC, so that people see the objects."""
    palette = []
    for number in range(256):
        # Bits 0, 3 and 6 of the number are the highest ones of red, and so on.
        for channel in range(3):
            bits = [number >> (3 * position + channel) & 1 for position in range(3)]
            palette.append(sum(bit << (7 - position) for position, bit in enumerate(bits)))
    image = Image.fromarray(numbers)
    image.putpalette(palette)
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _annotation(
    image: SourceImage,
    name: str,
    names: dict[object, str],
    is_segmented: bool,
    target: Target,
) -> str:
    """Return the XML of an image."""
    root = ElementTree.Element("annotation")
    _add(root, "folder", "JPEGImages")
    _add(root, "filename", name)
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        _add(size, tag, str(value))
    _add(root, "segmented", "1" if is_segmented else "0")
    for annotation in image.annotations:
        box = _at_least_a_pixel(annotation["bbox"], (image.width, image.height))
        if box != annotation["bbox"]:
            target.note("boxes widened to one pixel")
        _add_object(root, annotation | {"bbox": box}, names[annotation["category_id"]])
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _at_least_a_pixel(box: list[float], size: tuple[int, int]) -> list[float]:
    """Return a box x, y, width, height whose sides have one pixel or more, in an image of a size.

    Its centre stays where it is, as far as the box stays in the image.
    """
    widened = list(box)
    for axis, pixels in enumerate(size):
        start, length = box[axis], box[axis + 2]
        if length < 1:
            widened[axis] = min(max(start + length / 2 - 0.5, 0.0), pixels - 1.0)
            widened[axis + 2] = 1.0
    return widened


def _add_object(root: ElementTree.Element, annotation: JsonObject, name: str) -> None:
    element = ElementTree.SubElement(root, "object")
    _add(element, "name", name)
    _add(element, "pose", "Unspecified")
    _add(element, "truncated", "0")
    _add(element, "difficult", "1" if annotation.get("iscrowd") else "0")
    box = ElementTree.SubElement(element, "bndbox")
    x, y, width, height = annotation["bbox"]
    corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
    for tag, value in corners.items():
        _add(box, tag, f"{round(value, 9):.9f}".rstrip("0").rstrip("."))


def _add(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text
