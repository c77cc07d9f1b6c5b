"""The annotations of a COCO file: from a list of anything to a table of those that can be used."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from groupdetr.data import box_rules, mask_rules
from groupdetr.data.findings import Findings, shown
from groupdetr.data.records import Bools, Floats, Ints
from groupdetr.data.segmentations import Shape
from groupdetr.data.values import Id, four_numbers, identity, note_types, number

# In place of an index: what the file does not list, or lists in a way that cannot be used (and was reported as such).
UNKNOWN, REFUSED = -1, -2


@dataclass(frozen=True)
class Table:
    """A usable annotations, column by column."""

    ids: list[Id | None]
    image: Ints  # [A] index into the images
    label: Ints  # [A]
    boxes: Floats  # [A,4] x, y, width, height in pixels
    areas: Floats  # [A]
    crowd: Bools  # [A]
    shapes: tuple[Shape, ...] | None = None  # [A] where masks were asked for

    def rows(self, which: Ints | slice) -> Table:
        def of(column: Any) -> Any:
            return column[which] if isinstance(which, slice) else [column[i] for i in which]

        ids, shapes = of(self.ids), None if self.shapes is None else tuple(of(self.shapes))
        label, boxes, areas, crowd = (
            self.label[which],
            self.boxes[which],
            self.areas[which],
            self.crowd[which],
        )
        return Table(ids, self.image[which], label, boxes, areas, crowd, shapes)


def read_annotations(
    items: list[Any],
    sizes: Floats,
    images: dict[Id, int],
    labels: dict[Id, int],
    found: Findings,
    masks: bool,
) -> Table:
    """The usable ones among ``items``; ``sizes`` [I,2] of the images, and id -> index of images and of categories."""
    dicts = _objects(items, found)
    _check_ids(dicts, found)
    image = _lookup(dicts, "image_id", images, "unknown-image", found)
    label = _lookup(dicts, "category_id", labels, "unknown-category", found)
    boxes, sound = _boxes(dicts, found)
    ids = [identity(item.get("id")) for item in dicts]
    table = Table(ids, image, label, boxes, _areas(dicts, boxes, found), _crowd(dicts, found))
    usable = np.flatnonzero((image >= 0) & (label >= 0) & sound)
    table, dicts = table.rows(usable), [dicts[row] for row in usable]
    _check_places(dicts, table, sizes[table.image], found)
    return _with_shapes(dicts, table, sizes[table.image], found) if masks else table


def _objects(items: list[Any], found: Findings) -> list[dict[str, Any]]:
    for position, item in enumerate(items):
        if not isinstance(item, dict):
            found.add(
                "bad-annotation",
                f"annotation number {position + 1}",
                f"it is {shown(item)}, not an object",
            )
    return [item for item in items if isinstance(item, dict)]


def _called(item: dict[str, Any]) -> str:
    return (
        f"annotation {shown(item['id'])}"
        if "id" in item
        else f"an annotation of image {shown(item.get('image_id'))}"
    )


def _check_ids(items: list[dict[str, Any]], found: Findings) -> None:
    """The annotations' own ids: they are renumbered, so nothing about them stops training."""
    values = [item.get("id") for item in items]
    note_types(values, "annotation", found)
    ids = [identity(value) for value in values]
    for row, key in enumerate(ids):
        if key is None:
            found.add("annotation-id", _called(items[row]), f"its id is {shown(values[row])}")
        if key == 0:
            found.add("annotation-id-zero", "annotation 0", "its id is 0")
    for key, count in Counter(ids).items():
        if key is not None and count > 1:
            found.add(
                "duplicate-annotation-id",
                f"annotation {shown(key)}",
                f"{count} annotations have this id",
            )


def _lookup(
    items: list[dict[str, Any]], key: str, index: dict[Id, int], code: str, found: Findings
) -> Ints:
    """The index of what each annotation refers to by ``key``, negative where it cannot be used, [A]."""
    if not index:  # that the list is empty was reported; every annotation would only repeat it
        return np.full(len(items), REFUSED)
    ids = [identity(item.get(key)) for item in items]
    column = np.array(
        [UNKNOWN if i is None else index.get(i, UNKNOWN) for i in ids], dtype=np.int64
    )
    for row in np.flatnonzero(column == UNKNOWN):
        found.add(
            code,
            _called(items[row]),
            f"its {key} is {shown(items[row].get(key))}{_twin(ids[row], index)}",
        )
    return column


def _twin(value: Id | None, index: dict[Id, int]) -> str:
    """A hint where ids are text at one end and numbers at the other."""
    twins = (key for key in (value, str(value)) if type(key) is not type(value))
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        twins = (key for key in (int(value),))
    return "".join(f", but the list has {shown(key)}" for key in twins if key in index)


def _boxes(items: list[dict[str, Any]], found: Findings) -> tuple[Floats, Bools]:
    """Boxes [A,4], zero where malformed, and which of them are usable [A]."""
    values = [four_numbers(item.get("bbox")) for item in items]
    boxes = np.array([value or [0.0] * 4 for value in values], dtype=np.float64).reshape(-1, 4)
    faults = {
        "box-malformed": np.array([value is None for value in values], dtype=bool)
    } | box_rules.unusable(boxes)
    for code, rows in faults.items():
        for row in np.flatnonzero(rows):
            found.add(code, _called(items[row]), f"its bbox is {shown(items[row].get('bbox'))}")
    return boxes, ~np.any(list(faults.values()), axis=0)


def _areas(items: list[dict[str, Any]], boxes: Floats, found: Findings) -> Floats:
    """Areas [A]: as recorded, or of the box where there is none or nonsense."""
    values = [item.get("area") for item in items]
    areas = np.array(
        [np.nan if (a := number(value)) is None else a for value in values], dtype=np.float64
    )
    usable = np.isfinite(areas) & (areas >= 0)
    for row in np.flatnonzero(~usable):
        if values[row] is not None:
            found.add("bad-area", _called(items[row]), f"its area is {shown(values[row])}")
    with np.errstate(invalid="ignore", over="ignore"):  # rows whose box is nonsense, soon dropped
        return np.where(usable, areas, boxes[:, 2] * boxes[:, 3])


def _crowd(items: list[dict[str, Any]], found: Findings) -> Bools:
    values = [item.get("iscrowd") for item in items]
    for item, value in zip(items, values):
        if not (value is None or (isinstance(value, (int, float)) and value in (0, 1))):
            found.add("bad-iscrowd", _called(item), f"its iscrowd is {shown(value)}")
    return np.array([bool(value) and value != "0" for value in values], dtype=bool)


def _check_places(
    items: list[dict[str, Any]], table: Table, sizes: Floats, found: Findings
) -> None:
    """Where the boxes lie in their images of ``sizes`` [A,2], and whether they mean what we think."""
    real = ~table.crowd
    if code := box_rules.convention(table.boxes[real], sizes[real]):
        found.add(
            code,
            "",
            f"the boxes of this file {_WORDS[code]}, such as {table.boxes[real][0].tolist()}",
        )
    owners = np.stack([table.image, table.label], axis=1)
    faults = box_rules.misplaced(table.boxes, sizes) | {
        "duplicate-box": box_rules.repeated(table.boxes, owners)
    }
    for code, rows in faults.items():
        for row in np.flatnonzero(rows):
            image = "image of {:.0f} x {:.0f} pixels".format(*sizes[row])
            found.add(
                code,
                _called(items[row]),
                f"its bbox {shown(items[row]['bbox'])} {_WORDS[code]} ({image})",
            )


def _with_shapes(
    items: list[dict[str, Any]], table: Table, sizes: Floats, found: Findings
) -> Table:
    """The annotations whose shape can be used, in images of ``sizes`` [A,2]."""
    shapes = [_shape(*row, found) for row in zip(items, table.crowd, table.boxes, sizes)]
    kept = np.flatnonzero([shape is not None for shape in shapes])
    usable = tuple(shape for shape in shapes if shape is not None)
    if mask_rules.normalised(usable, sizes[kept]):
        found.add(
            "masks-look-normalised",
            "",
            "the polygons of this file look like fractions of the picture",
        )
    return replace(table.rows(kept), shapes=usable)


def _shape(
    item: dict[str, Any], crowd: bool, box: Floats, size: Floats, found: Findings
) -> Shape | None:
    """An object needs one; of a crowd it is the box where there is nothing better."""
    value = item.get("segmentation")
    if crowd and not value:
        found.add("crowd-without-mask", _called(item), "it is a crowd and has no segmentation")
        return mask_rules.as_polygon(box.tolist())
    return mask_rules.shape_of(value, (int(size[0]), int(size[1])), _called(item), found)


_WORDS = {
    "boxes-look-normalised": "look like fractions of the picture",
    "boxes-look-xyxy": "look like two corners",
    "box-no-area": "has no area",
    "box-outside": "lies outside the image",
    "box-clamped": "lies partly outside the image",
    "duplicate-box": "is there twice for one class",
}
