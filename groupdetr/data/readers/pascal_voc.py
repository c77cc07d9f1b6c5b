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

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from groupdetr.data.findings import Finding, Findings, printable
from groupdetr.data.formats import DataFormat, RecordLocation, SplitAnnotations
from groupdetr.data.readers.pascal_voc_folders import (
    ImageIndex,
    dataset_folder,
    is_annotation,
    read_splits,
    xml_files,
)
from groupdetr.data.readers.pascal_voc_xml import XmlAnnotation, read_masks, read_xml, without_xml
from groupdetr.data.readers.record_locations import RecordLocations
from groupdetr.data.readers.text_file import read_lines
from groupdetr.structures.json_object import JsonObject

# Files with the names of the classes in their order, in the folder of the dataset. Without one, the
# classes are in alphabetical order, as the 20 classes of VOC are.
_CLASS_FILES = ("labelmap.txt", "labels.txt", "classes.txt", "predefined_classes.txt")
_MASK_FOLDER = "SegmentationObject"


def is_pascal_voc(data: Path) -> bool:
    """Return whether a folder is a Pascal VOC dataset."""
    if not data.is_dir():
        return False
    return any(is_annotation(file) for file in islice(xml_files(data), 5))


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
    root = dataset_folder(data)
    files = sorted(xml_files(root))
    images = ImageIndex(root)
    annotations = {}
    for file in files:
        annotations[file] = read_xml(file, images)
    splits = read_splits(root, files, lists)
    names = _class_names(root, annotations)
    starts_at_zero = any(item.has_zero_corner() for item in annotations.values())
    locations = RecordLocations()
    unused = images.count - len({item.image for item in annotations.values() if item.image})
    result = {}
    for split, (source, members) in splits.items():
        chosen = []
        for file in members:
            if file not in annotations:
                annotations[file] = without_xml(file, images)
            if masks:
                read_masks(annotations[file], root / _MASK_FOLDER)
            chosen.append(annotations[file])
        result[split] = _to_coco(source, chosen, names, starts_at_zero, root, locations)
    first = next(iter(result))
    extra = list(_findings_of_dataset(root, unused, annotations if starts_at_zero else {}))
    result[first] = replace(result[first], findings=(*extra, *result[first].findings))
    return result


def _findings_of_dataset(
    root: Path, unused: int, with_zero: dict[Path, XmlAnnotation]
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


def _class_names(root: Path, annotations: dict[Path, XmlAnnotation]) -> list[str]:
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
                is_background = listed[:1] == ["background"] and "background" not in used
                return list(dict.fromkeys(listed[is_background:]))
    return sorted(used)


def _to_coco(
    source: Path,
    annotations: list[XmlAnnotation],
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
