"""Conversion of datasets between formats: everything that the target can hold is kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from groupdetr.data.findings import printable, raise_first_error
from groupdetr.data.image_decoding import expect_image_file
from groupdetr.data.json_values import Id, parse_box, parse_id
from groupdetr.data.layouts import read_contents, read_with_findings
from groupdetr.data.records import Category, CocoSplit, Record
from groupdetr.data.writers.coco import write_coco
from groupdetr.data.writers.pascal_voc import write_pascal_voc
from groupdetr.data.writers.target import (
    Progress,
    SourceImage,
    SourceSplit,
    Target,
    without_progress,
)
from groupdetr.data.writers.yolo import write_yolo
from groupdetr.errors import UsageError
from groupdetr.structures.json_object import JsonObject

WRITERS: dict[str, Callable[[Sequence[SourceSplit], Target], None]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_pascal_voc,
}


@dataclass(frozen=True)
class Conversion:
    """A dataset that was written, and what the format could not hold."""

    folder: Path
    images: dict[str, int]  # split -> number
    annotations: dict[str, int]  # split -> number, with those that the format could not hold
    notes: dict[str, int]  # what was changed or lost -> how often


def write(
    splits: Sequence[SourceSplit],
    to: str,
    out: Path,
    link: bool = False,
    progress: Progress = without_progress,
) -> Conversion:
    """Write a dataset in the format ``to``, a key of `WRITERS`, to the folder ``out``.

    With ``link``, images are linked and not copied. ``progress`` yields the images of a split, and
    shows how far it is. `DataError` for the first image that is not there: nothing is written then.
    """
    for split in splits:
        for image in split.images:
            expect_image_file(image.path)
    target = Target(out, link, progress)
    splits = [_with_names_in_utf8(split, target) for split in splits]
    WRITERS[to](splits, target)
    return Conversion(
        out,
        {split.name: len(split.images) for split in splits},
        {split.name: sum(len(image.annotations) for image in split.images) for split in splits},
        dict(target.notes),
    )


def _with_names_in_utf8(split: SourceSplit, target: Target) -> SourceSplit:
    """Return a split whose names of images can be written into a text file.

    A name may have bytes that are no UTF-8, as those that Windows wrote into an archive. Python
    keeps such a byte as the character U+DC00 plus its value. The copy has its value in hexadecimal.
    """
    images = []
    for image in split.images:
        name = str(image.file_name)
        text = re.sub("[\udc80-\udcff]", lambda match: f"_x{ord(match[0]) - 0xDC00:02x}", name)
        if text != name:
            target.note("images renamed, because their names are not in UTF-8")
        images.append(replace(image, file_name=PurePosixPath(text)))
    return replace(split, images=images)


def read_splits(
    data: Path, images: Path | None, val_fraction: float | None = None, seed: int = 0
) -> list[SourceSplit]:
    """Return the splits of a dataset as they are recorded. Nothing is held out by default.

    ``val_fraction`` of the train images become val, if the dataset has no val split. `DataError`
    for the first problem of the dataset that would mislead training.
    """
    contents = read_contents(data, images)
    if val_fraction is not None and "val" in contents:
        raise UsageError(
            "the dataset has a val split already", str(data), "leave out --val-fraction"
        )
    dataset, findings = read_with_findings(data, images, seed, holdout=val_fraction)
    raise_first_error(findings)
    categories = _categories(dataset.categories, contents["train"].content)
    result = []
    for name, split in dataset.splits.items():
        content = contents[name if name in contents else "train"].content
        result.append(_source_split(name, split, content, categories))
    return result


def _categories(kept: Sequence[Category], content: JsonObject) -> list[JsonObject]:
    """Return the recorded entries of the categories, in the order of their labels."""
    recorded = {parse_id(entry["id"]): entry for entry in content["categories"]}
    return [recorded[category.id] | {"id": category.id} for category in kept]


def _source_split(
    name: str, split: CocoSplit, content: JsonObject, categories: list[JsonObject]
) -> SourceSplit:
    """Return a split with the raw entries of its valid images and annotations."""
    records: dict[Id, Record] = {record.image_id: record for record in split.records}
    entries = {parse_id(entry["id"]): entry for entry in content["images"]}
    kept = {item["id"] for item in categories}
    annotations: dict[Id, list[JsonObject]] = {}
    for annotation in content.get("annotations", []):  # a test split may have none
        image_id, category_id = (parse_id(annotation[key]) for key in ("image_id", "category_id"))
        if image_id is not None and image_id in records and category_id in kept:
            box = parse_box(annotation["bbox"])
            ids = {"image_id": image_id, "category_id": category_id}
            entry = annotation | ids | {"bbox": box}
            annotations.setdefault(image_id, []).append(entry)
    images = []
    for image_id, record in records.items():
        file_name = PurePosixPath(record.path.relative_to(split.images_dir).as_posix())
        images.append(
            SourceImage(
                record.path,
                file_name,
                record.width,
                record.height,
                entries[image_id],
                annotations.get(image_id, []),
                record.upright,
            )
        )
    return SourceSplit(name, content, categories, images)


def describe(conversion: Conversion) -> list[str]:
    """Return the lines about a conversion: what was written, what was changed or lost."""
    lines = []
    for name, count in conversion.images.items():
        lines.append(f"{name}: {count} images, {conversion.annotations[name]} annotations")
    for what, count in conversion.notes.items():
        lines.append(f"not as in the source: {count} {what}")
    lines.append(f"written to {printable(str(conversion.folder))[1:-1]}")
    return lines
