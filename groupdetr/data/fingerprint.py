"""The fingerprint of a dataset: what a run records of its data, to notice changes on a resume.

It has the classes in the order of their labels, and for every split the numbers of images and
objects and two digests. Paths are no part of it, so a dataset may be moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from groupdetr.data.nuscenes.samples import Sample
from groupdetr.data.records import Category, Record
from groupdetr.data.segmentations import Polygons
from groupdetr.structures.json_object import JsonObject

SHOWN = 5  # classes that a message names
SPLIT_KEYS = {"images", "objects", "images_digest", "objects_digest"}


def fingerprint(
    categories: Sequence[Category], splits: Mapping[str, Sequence[Record] | Sequence[Sample]]
) -> JsonObject:
    """Return the fingerprint of a dataset, as JSON."""
    ids = {label: repr(category.id) for label, category in enumerate(categories)}
    return {
        "categories": [[category.id, category.name] for category in categories],
        "splits": {name: _of_split(records, ids) for name, records in splits.items()},
    }


def is_fingerprint(content: object) -> bool:
    """Return True if JSON that was read from a file has the form of a fingerprint."""
    if not isinstance(content, dict):
        return False
    categories, splits = content.get("categories"), content.get("splits")
    return (
        isinstance(categories, list)
        and all(isinstance(category, list) and len(category) == 2 for category in categories)
        and isinstance(splits, dict)
        and all(isinstance(split, dict) and set(split) >= SPLIT_KEYS for split in splits.values())
    )


def differences(recorded: JsonObject, current: JsonObject) -> list[str]:
    """Return what differs between two fingerprints, in sentences without a full stop.

    The caller has checked a recorded one that it read from a file with `is_fingerprint`.
    """
    changes = _category_differences(recorded["categories"], current["categories"])
    for name, now in current["splits"].items():
        before = recorded["splits"].get(name)
        if before is None:
            changes.append(f"there was no {name} split")
        elif now["images"] != before["images"]:
            changes.append(f"{name} had {before['images']} images and has {now['images']} now")
        elif now["images_digest"] != before["images_digest"]:
            changes.append(f"{name} has other images, or the same ones in another order")
        elif now["objects"] != before["objects"]:
            changes.append(f"{name} had {before['objects']} objects and has {now['objects']} now")
        elif not changes and now["objects_digest"] != before["objects_digest"]:
            # Objects refer to classes, so a change of these is told alone.
            changes.append(f"{name} has other annotations")
    changes += [
        f"there is no {name} split now"
        for name in recorded["splits"]
        if name not in current["splits"]
    ]
    return changes


def _category_differences(before: list[list[object]], now: list[list[object]]) -> list[str]:
    """Return how the classes differ: those that were added, removed or moved."""
    if before == now:
        return []
    changes = []
    added = [category for category in now if category not in before]
    removed = [category for category in before if category not in now]
    if removed:
        changes.append(f"the class {_names(removed)} is not there now")
    if added:
        changes.append(f"the class {_names(added)} is new")
    if not changes:
        changes.append(f"the order of the classes was {_names(before)} and is {_names(now)} now")
    return changes


def _names(categories: Sequence[Sequence[object]]) -> str:
    """Return names and ids of the first few classes."""
    shown = [f"{name} (id {number})" for number, name in categories[:SHOWN]]
    more = ", ..." if len(categories) > SHOWN else ""
    return ", ".join(shown) + more


def _of_split(records: Sequence[Record] | Sequence[Sample], ids: dict[int, str]) -> JsonObject:
    images = hashlib.blake2b(digest_size=16)
    objects = hashlib.blake2b(digest_size=16)
    count = 0
    for record in records:
        labels = record.truth.labels if isinstance(record, Sample) else record.labels
        count += len(labels)
        images.update(_text(_image_key(record)))
        objects.update(_text([ids[label] for label in labels.tolist()]))
        for array in _object_arrays(record):
            objects.update(np.ascontiguousarray(array).tobytes())
    return {
        "images": len(records),
        "objects": count,
        "images_digest": images.hexdigest(),
        "objects_digest": objects.hexdigest(),
    }


def _image_key(record: Record | Sample) -> list[object]:
    """Return what identifies an image or a sample."""
    if isinstance(record, Sample):
        return [record.token, record.time]
    return [record.image_id, record.file_name, record.width, record.height]


def _object_arrays(record: Record | Sample) -> Iterable[np.ndarray]:
    """Yield what is annotated of the objects of an image or a sample, besides their labels."""
    if isinstance(record, Sample):
        yield record.truth.boxes
        yield record.truth.points
        return
    yield record.boxes
    yield record.crowd
    for segmentation in record.segmentations or ():
        if isinstance(segmentation, Polygons):
            yield from segmentation.parts
        else:
            yield np.frombuffer(segmentation.counts, dtype=np.uint8)


def _text(values: object) -> bytes:
    return f"{values!r}\n".encode("utf-8", "backslashreplace")
