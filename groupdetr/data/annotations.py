"""Annotations of a COCO file: from a JSON list to a table of the annotations that can be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from groupdetr.data import box_rules, mask_rules
from groupdetr.data.findings import Findings, printable
from groupdetr.data.json_values import Id, parse_box, parse_id, parse_number, report_id_types
from groupdetr.data.packed_segmentations import PackedSegmentations, SegmentationPacker
from groupdetr.data.records import Bools, Floats, Ids, Ints
from groupdetr.data.segmentations import Segmentation
from groupdetr.structures.json_object import JsonObject

# Values that stand in the place of an index. UNKNOWN: the file does not list the id. REFUSED: the
# file lists it, but the entry cannot be used and was reported.
UNKNOWN, REFUSED = -1, -2


@dataclass(frozen=True)
class AnnotationTable:
    """The A annotations that can be used, column by column."""

    ids: Ids  # [A] as recorded, None where there is none
    image: Ints  # [A] index of the image
    label: Ints  # [A]
    boxes: Floats  # [A,4] x, y, width, height in pixels
    areas: Floats  # [A]
    crowd: Bools  # [A]
    segmentations: PackedSegmentations | None = None  # [A] if the file is read with masks

    def rows(self, index: Ints) -> AnnotationTable:
        """Return the rows ``index`` [R], in that order."""
        return AnnotationTable(
            self.ids[index],
            self.image[index],
            self.label[index],
            self.boxes[index],
            self.areas[index],
            self.crowd[index],
            None if self.segmentations is None else self.segmentations.rows(index),
        )


def id_column(ids: Sequence[Id | None]) -> Ids:
    """Return ids as a column: numbers of 64 bits if all of them are whole numbers."""
    if set(map(type, ids)) <= {int}:
        return np.array(ids, dtype=np.int64)
    return np.array(ids, dtype=np.object_)


def read_annotations(
    items: list[object],
    sizes: Floats,
    images: dict[Id, int],
    labels: dict[Id, int],
    findings: Findings,
    masks: bool,
) -> AnnotationTable:
    """Return the annotations among ``items`` that can be used, and add findings for the others.

    ``sizes`` [I,2] are the widths and heights of the images. ``images`` maps ids to rows of
    ``sizes``, ``labels`` maps ids of categories to labels. With ``masks``, segmentations are read
    and must exist.
    """
    annotations = _objects(items, findings)
    _check_ids(annotations, findings)
    image = _lookup(annotations, "image_id", images, "unknown-image", findings)
    label = _lookup(annotations, "category_id", labels, "unknown-category", findings)
    boxes, usable_box = _boxes(annotations, findings)
    ids = id_column([parse_id(annotation.get("id")) for annotation in annotations])
    areas = _areas(annotations, boxes, findings)
    crowd = _crowd(annotations, findings)
    table = AnnotationTable(ids, image, label, boxes, areas, crowd)

    usable = np.flatnonzero((image >= 0) & (label >= 0) & usable_box)
    table = table.rows(usable)
    annotations = [annotations[row] for row in usable]
    image_sizes = sizes[table.image]
    check_box_positions(annotations, table, image_sizes, findings)
    if masks:
        table = _with_segmentations(annotations, table, image_sizes, findings)
    return table


def _objects(items: list[object], findings: Findings) -> list[JsonObject]:
    """Return the items that are JSON objects, and add a finding for each other item."""
    objects = []
    for position, item in enumerate(items):
        if isinstance(item, dict):
            objects.append(item)
        else:
            what = f"it is {printable(item)}, not an object"
            findings.add("bad-annotation", f"annotation number {position + 1}", what)
    return objects


def _record_name(annotation: JsonObject) -> str:
    if "id" in annotation:
        return f"annotation {printable(annotation['id'])}"
    return f"an annotation of image {printable(annotation.get('image_id'))}"


def _check_ids(annotations: list[JsonObject], findings: Findings) -> None:
    """Check the annotations' own ids. They are renumbered, so no problem stops the training."""
    values = [annotation.get("id") for annotation in annotations]
    report_id_types(values, "annotation", findings)
    ids = [parse_id(value) for value in values]
    for row, key in enumerate(ids):
        if key is None:
            record = _record_name(annotations[row])
            findings.add("annotation-id", record, f"its id is {printable(values[row])}")
        if key == 0:
            findings.add("annotation-id-zero", "annotation 0", "its id is 0")
    for key, count in Counter(ids).items():
        if key is not None and count > 1:
            record = f"annotation {printable(key)}"
            what = f"{count} annotations have this id"
            findings.add("duplicate-annotation-id", record, what)


def _lookup(
    annotations: list[JsonObject],
    key: str,
    index: dict[Id, int],
    code: str,
    findings: Findings,
) -> Ints:
    """Return the index that the id under ``key`` stands for, [A], negative if it has none."""
    if not index:
        # The empty list was reported. Every annotation would only repeat it.
        return np.full(len(annotations), REFUSED)
    ids = [parse_id(annotation.get(key)) for annotation in annotations]
    indices = [UNKNOWN if i is None else index.get(i, UNKNOWN) for i in ids]
    column = np.array(indices, dtype=np.int64)
    for row in np.flatnonzero(column == UNKNOWN):
        value = printable(annotations[row].get(key))
        what = f"its {key} is {value}{_type_hint(ids[row], index)}"
        findings.add(code, _record_name(annotations[row]), what)
    return column


def _type_hint(value: Id | None, index: dict[Id, int]) -> str:
    """Return a hint if the list has the same id as another type: text or number."""
    other: Id = str(value)
    if isinstance(value, str):
        if not (value.isdecimal() and len(value) < 20):
            return ""
        other = int(value)
    return f", but the list has {printable(other)}" if other in index else ""


def _boxes(annotations: list[JsonObject], findings: Findings) -> tuple[Floats, Bools]:
    """Return boxes [A,4], zero where malformed, and which of them can be used, [A] bool."""
    parsed = [parse_box(annotation.get("bbox")) for annotation in annotations]
    filled = [box or [0.0] * 4 for box in parsed]
    boxes = np.array(filled, dtype=np.float64).reshape(-1, 4)
    malformed = np.array([box is None for box in parsed], dtype=bool)
    rows_by_code = {"box-malformed": malformed, **box_rules.unusable(boxes)}
    for code, rows in rows_by_code.items():
        for row in np.flatnonzero(rows):
            what = f"its bbox is {printable(annotations[row].get('bbox'))}"
            findings.add(code, _record_name(annotations[row]), what)
    unusable = np.any(list(rows_by_code.values()), axis=0)
    return boxes, ~unusable


def _areas(annotations: list[JsonObject], boxes: Floats, findings: Findings) -> Floats:
    """Return areas [A] as recorded, or the area of the box where none or no valid one is."""
    values = [annotation.get("area") for annotation in annotations]
    numbers = [parse_number(value) for value in values]
    areas = np.array([np.nan if x is None else x for x in numbers], dtype=np.float64)
    usable = np.isfinite(areas) & (areas >= 0)
    for row in np.flatnonzero(~usable):
        if values[row] is not None:
            what = f"its area is {printable(values[row])}"
            findings.add("bad-area", _record_name(annotations[row]), what)
    # Boxes that are not finite are dropped later.
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(usable, areas, boxes[:, 2] * boxes[:, 3])


def _crowd(annotations: list[JsonObject], findings: Findings) -> Bools:
    """Return which annotations are crowds, [A] bool."""
    values = [annotation.get("iscrowd") for annotation in annotations]
    for annotation, value in zip(annotations, values):
        is_zero_or_one = isinstance(value, (int, float)) and value in (0, 1)
        if value is not None and not is_zero_or_one:
            what = f"its iscrowd is {printable(value)}"
            findings.add("bad-iscrowd", _record_name(annotation), what)
    return np.array([bool(value) and value != "0" for value in values], dtype=bool)


def check_box_positions(
    annotations: Sequence[JsonObject], table: AnnotationTable, sizes: Floats, findings: Findings
) -> None:
    """Check that the boxes lie in their images, of ``sizes`` [A,2], and follow the convention."""
    not_crowd = ~table.crowd
    boxes = table.boxes[not_crowd]
    if code := box_rules.wrong_convention(boxes, sizes[not_crowd]):
        what = f"the boxes of this file {_BOX_PROBLEMS[code]}, such as {boxes[0].tolist()}"
        findings.add(code, "", what)
    owners = np.stack([table.image, table.label], axis=1)
    rows_by_code = box_rules.misplaced(table.boxes, sizes)
    rows_by_code["duplicate-box"] = box_rules.repeated(table.boxes, owners)
    for code, rows in rows_by_code.items():
        for row in np.flatnonzero(rows).tolist():
            bbox = printable(annotations[row]["bbox"])
            width, height = sizes[row]
            what = (
                f"its bbox {bbox} {_BOX_PROBLEMS[code]} "
                f"(image of {width:.0f} x {height:.0f} pixels)"
            )
            findings.add(code, _record_name(annotations[row]), what)


def _with_segmentations(
    annotations: list[JsonObject], table: AnnotationTable, sizes: Floats, findings: Findings
) -> AnnotationTable:
    """Return the annotations whose segmentation can be used, in images of ``sizes`` [A,2]."""
    usable_rows: list[int] = []
    packer = SegmentationPacker()
    for row, annotation in enumerate(annotations):
        segmentation = read_segmentation(
            annotation, bool(table.crowd[row]), table.boxes[row], sizes[row], findings
        )
        if segmentation is not None:
            usable_rows.append(row)
            packer.add(segmentation)
    usable = np.array(usable_rows, dtype=np.int64)
    segmentations = packer.packed()
    check_mask_convention(segmentations, sizes[usable], findings)
    return replace(table.rows(usable), segmentations=segmentations)


def check_mask_convention(
    segmentations: PackedSegmentations, sizes: Floats, findings: Findings
) -> None:
    """Check that the polygons are not fractions of their images, of ``sizes`` [A,2]."""
    if mask_rules.are_normalised(segmentations, sizes):
        what = "the polygons of this file look like fractions of the image"
        findings.add("masks-look-normalised", "", what)


def read_segmentation(
    annotation: JsonObject, crowd: bool, box: Floats, size: Floats, findings: Findings
) -> Segmentation | None:
    """Return the segmentation of an annotation. A crowd without one gets that of its box."""
    value = annotation.get("segmentation")
    record = _record_name(annotation)
    if crowd and not value:
        findings.add("crowd-without-mask", record, "it is a crowd and has no segmentation")
        return mask_rules.box_polygon(mask_rules.box_within_reach(box, size))
    width, height = int(size[0]), int(size[1])
    return mask_rules.parse_segmentation(value, (width, height), record, findings)


_BOX_PROBLEMS = {
    "boxes-look-normalised": "look like fractions of the image",
    "boxes-look-xyxy": "look like two corners",
    "box-no-area": "has no area",
    "box-outside": "lies outside the image",
    "box-clamped": "lies partly outside the image",
    "duplicate-box": "occurs twice with the same class",
}
