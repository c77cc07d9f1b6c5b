"""Writing Pascal VOC datasets: JPEGImages, Annotations and ImageSets/Main."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import PurePosixPath

from groupdetr.data.writers.target import SourceImage, SourceSplit, Target, flat_names
from groupdetr.structures.json_object import JsonObject


def write_pascal_voc(splits: Sequence[SourceSplit], target: Target) -> None:
    """Write a Pascal VOC dataset. Coordinates begin at 1; crowds become difficult objects.

    The format has no list of classes. Their names are in labels.txt, in their order.
    """
    keys = {}  # images of two splits may have the same name
    for split in splits:
        for image in split.images:
            keys[split.name, image.file_name] = PurePosixPath(split.name) / image.file_name
    flat = flat_names(keys.values())
    for split in splits:
        names = {item["id"]: item["name"] for item in split.categories}
        stems = []
        for image in target.progress(split.images, split.name):
            name = flat[keys[split.name, image.file_name]]
            if name != image.file_name.name:
                target.note("images renamed, because two would share one annotation file")
            stems.append(PurePosixPath(name).stem)
            target.copy_image(image.path, PurePosixPath("JPEGImages", name))
            text = _annotation(image, name, names, target)
            target.write_file(f"Annotations/{stems[-1]}.xml", text)
        text = "".join(f"{stem}\n" for stem in stems)
        target.write_file(f"ImageSets/Main/{split.name}.txt", text)
    classes = "".join(f"{item['name']}\n" for item in splits[0].categories)
    target.write_file("labels.txt", classes)


def _annotation(image: SourceImage, name: str, names: dict[object, str], target: Target) -> str:
    """Return the XML of an image."""
    root = ElementTree.Element("annotation")
    _add(root, "folder", "JPEGImages")
    _add(root, "filename", name)
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        _add(size, tag, str(value))
    has_masks = any(annotation.get("segmentation") for annotation in image.annotations)
    _add(root, "segmented", "0")
    if has_masks:
        count = sum(bool(annotation.get("segmentation")) for annotation in image.annotations)
        target.note("masks left out", count)
    for annotation in image.annotations:
        _add_object(root, annotation, names[annotation["category_id"]])
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


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
