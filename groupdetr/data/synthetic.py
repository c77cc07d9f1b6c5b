"""Synthetic detection dataset: shapes with exact boxes and masks, generated from a seed.

A class is a shape; colour, rotation, stretch and texture do not depend on it. An image depends
only on the seed, the name of its split, its index and the config, so each can be generated without
the others. Lengths are in pixels, angles in radians.
"""

from __future__ import annotations

import io
import json
import math
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groupdetr.data.synthetic_rendering import render
from groupdetr.data.synthetic_shapes import SHAPES, SyntheticObject, random_coverage
from groupdetr.errors import DataError
from groupdetr.structures.json_object import JsonObject

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
OnImageWritten = Callable[
    [str, int, int], None
]  # split, number of images done, number of all images

# Increase it when the same config generates other images than before, so that an old folder is not
# mistaken for a new one.
REVISION = 1
MAX_TRIES = 24  # positions tried for an object before it is left out
# Range of the diameter of small, medium and large objects, as fractions of the image side.
DIAMETERS = ((0.13, 0.2), (0.2, 0.32), (0.32, 0.48))
# Smallest visible part of an object, even at occlusion 1. A box around almost nothing would be a
# wrong label.
MIN_VISIBLE = 0.1


@dataclass(frozen=True)
class SyntheticConfig:
    """The size and the content of synthetic images.

    ``texture`` is 0 for plain and 1 for busy images. ``occlusion`` is the largest fraction of an
    object that others may hide. ``sizes`` are the weights of small, medium and large objects. The
    number of objects of an image is drawn from ``min_objects`` to ``max_objects``. The first one
    always fits; later ones are left out if the image is too crowded.
    """

    image_size: int = 96
    num_classes: int = 6
    max_objects: int = 6
    min_objects: int = 1
    texture: float = 0.5
    occlusion: float = 0.3
    sizes: tuple[float, float, float] = (0.3, 0.45, 0.25)
    seed: int = 0

    def __post_init__(self) -> None:
        _require(
            self.image_size >= 32, f"image_size must be at least 32 pixels, not {self.image_size}"
        )
        _require(
            1 <= self.num_classes <= len(SHAPES),
            f"num_classes must be 1 to {len(SHAPES)}, not {self.num_classes}",
        )
        _require(
            0 <= self.min_objects <= self.max_objects,
            "0 <= min_objects <= max_objects must hold, "
            f"not {self.min_objects} and {self.max_objects}",
        )
        _require(0 <= self.texture <= 1, f"texture must be between 0 and 1, not {self.texture}")
        _require(
            0 <= self.occlusion <= 1, f"occlusion must be between 0 and 1, not {self.occlusion}"
        )
        valid_sizes = (
            len(self.sizes) == 3 and min(self.sizes) >= 0 and 0 < sum(self.sizes) < math.inf
        )
        _require(
            valid_sizes,
            "sizes must be three weights (small, medium, large), not negative and not all 0, "
            f"not {self.sizes}",
        )
        _require(self.seed >= 0, f"seed must be at least 0, not {self.seed}")
        # Integers become floats, so that equal configs generate equal images and equal JSON.
        object.__setattr__(self, "texture", float(self.texture))
        object.__setattr__(self, "occlusion", float(self.occlusion))
        object.__setattr__(self, "sizes", tuple(float(weight) for weight in self.sizes))


@dataclass(frozen=True)
class SyntheticImage:
    """One image and its objects, the farthest first. A box is tight around the visible part."""

    image: NDArray[np.uint8]  # [H,W,3] uint8
    boxes: NDArray[np.float32]  # [T,4] float32, xyxy pixels, right and bottom exclusive
    labels: Ints  # [T] int64, from 0
    masks: Bools  # [T,H,W] bool, disjoint


def class_names(config: SyntheticConfig) -> tuple[str, ...]:
    """Return the names of the classes, by label."""
    return tuple(SHAPES)[: config.num_classes]


def generate_image(config: SyntheticConfig, split: str, index: int) -> SyntheticImage:
    """Generate image ``index`` of a split.

    Layout and appearance use separate random streams, so ``texture`` does not change the boxes.
    """
    spawn_key = (zlib.crc32(split.encode()), index)
    seeds = np.random.SeedSequence(config.seed, spawn_key=spawn_key)
    layout_seed, appearance_seed = seeds.spawn(2)
    objects, owner = _arrange(config, np.random.default_rng(layout_seed))
    masks: Bools = owner == np.arange(1, len(objects) + 1)[:, None, None]
    labels = np.array([item.label for item in objects], dtype=np.int64)
    rng = np.random.default_rng(appearance_seed)
    image = render(config.image_size, objects, config.texture, rng)
    return SyntheticImage(image, _tight_boxes(masks), labels, masks)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


# layout: the positions of the objects


def _arrange(
    config: SyntheticConfig, rng: np.random.Generator
) -> tuple[list[SyntheticObject], Ints]:
    """Return objects from back to front, and the owner of each pixel [H,W].

    The owner is 0 for the background, else 1 + the index of the object.
    """
    owner = np.zeros((config.image_size, config.image_size), dtype=np.int64)
    objects: list[SyntheticObject] = []
    for _ in range(rng.integers(config.min_objects, config.max_objects, endpoint=True)):
        item = _place_object(config, objects, owner, rng)
        if item is not None:
            objects.append(item)
            owner[item.window][item.mask] = len(objects)
    return objects, owner


def _place_object(
    config: SyntheticConfig,
    objects: list[SyntheticObject],
    owner: Ints,
    rng: np.random.Generator,
) -> SyntheticObject | None:
    """Return a new object in front of the others that leaves enough of each visible.

    Each try is a little smaller than the last one. If all tries fail, return None.
    """
    label = int(rng.integers(config.num_classes))
    weights = np.array(config.sizes) / sum(config.sizes)
    diameter = config.image_size * rng.uniform(*DIAMETERS[rng.choice(3, p=weights)])
    total = np.array([np.count_nonzero(item.mask) for item in objects])
    required = max(1 - config.occlusion, MIN_VISIBLE) * total
    visible = _areas(owner, len(objects))
    for _ in range(MAX_TRIES):
        item = _random_object(config, label, diameter, objects, rng)
        hidden = _areas(owner[item.window][item.mask], len(objects))
        if (visible - hidden >= required).all():
            return item
        smallest = config.image_size * DIAMETERS[0][0]
        diameter = max(smallest, 0.93 * diameter)
    return None


def _areas(owner: Ints, count: int) -> Ints:
    """Return how many of the pixels of ``owner`` belong to each of ``count`` objects: [count]."""
    return np.bincount(owner.ravel(), minlength=count + 1)[1:]


def _random_object(
    config: SyntheticConfig,
    label: int,
    diameter: float,
    objects: list[SyntheticObject],
    rng: np.random.Generator,
) -> SyntheticObject:
    """Return an object at a random position.

    With probability ``occlusion`` it is at the border of another object, so that it covers a part
    of it.
    """
    coverage = random_coverage(label, diameter, rng)
    side = len(coverage)
    limit = config.image_size - side  # largest top and left
    top, left = rng.uniform(0, limit, 2)
    if objects and rng.random() < config.occlusion:
        other = objects[rng.integers(len(objects))]
        other_side = len(other.coverage)
        angle = rng.uniform(0, math.tau)
        distance = 0.25 * (side + other_side)  # of the two centres
        same_centre = (other_side - side) / 2
        top = other.top + same_centre + distance * math.sin(angle)
        left = other.left + same_centre + distance * math.cos(angle)
        top = min(max(top, 0), limit)
        left = min(max(left, 0), limit)
    return SyntheticObject(label, coverage, int(top), int(left))


def _tight_boxes(masks: Bools) -> NDArray[np.float32]:
    """Return the boxes [T,4] of masks [T,H,W], each of which has at least one pixel."""
    columns = masks.max(1)  # [T,W], True where a column has a pixel
    rows = masks.max(2)  # [T,H]
    # `argmax` returns the first True; from the other end it returns the last one.
    left = columns.argmax(1)
    top = rows.argmax(1)
    right = columns.shape[1] - columns[:, ::-1].argmax(1)
    bottom = rows.shape[1] - rows[:, ::-1].argmax(1)
    return np.stack([left, top, right, bottom], axis=1).astype(np.float32)


# files in the COCO layout


def write(
    config: SyntheticConfig,
    folder: Path | str,
    counts: Mapping[str, int],
    progress: OnImageWritten | None = None,
) -> None:
    """Write ``counts[split]`` images for each split, as ``images/{split}/000001.jpg`` and so on.

    Their annotations are ``annotations/instances_{split}.json``. A split that exists already with
    this config and count is kept; any other existing split is a `DataError`. Annotations are
    written last, so a split that has them is complete.
    """
    folder = Path(folder)
    missing = [
        split for split, count in counts.items() if not _is_written(config, folder, split, count)
    ]
    for split in missing:
        _write_split(config, folder, split, counts[split], progress)


def _write_split(
    config: SyntheticConfig, folder: Path, split: str, count: int, progress: OnImageWritten | None
) -> None:
    images: list[JsonObject] = []
    annotations: list[JsonObject] = []
    for index in range(count):
        image_id = index + 1
        name = f"{image_id:06d}.jpg"
        synthetic_image = generate_image(config, split, index)
        save(folder / "images" / split / name, jpeg(synthetic_image.image))
        side = config.image_size
        images.append({"id": image_id, "file_name": name, "width": side, "height": side})
        first_id = len(annotations) + 1
        annotations += _annotations(synthetic_image, image_id, first_id)
        if progress is not None:
            progress(split, image_id, count)
    names = class_names(config)
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(names)]
    content = {
        "info": _info(config, split, count),
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    save(_annotation_file(folder, split), json.dumps(content).encode())


def run_lengths(mask: Bools) -> list[int]:
    """Return COCO's uncompressed run lengths of a mask [H,W].

    The runs go down the columns; the first one is of zeros and may be empty.
    """
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    lengths: list[int] = np.diff(changes, prepend=0, append=pixels.size).tolist()
    return lengths


def _annotations(synthetic_image: SyntheticImage, image_id: int, first_id: int) -> list[JsonObject]:
    annotations = []
    boxes = synthetic_image.boxes.tolist()
    labels = synthetic_image.labels.tolist()
    for row, (box, label, mask) in enumerate(zip(boxes, labels, synthetic_image.masks)):
        left, top, right, bottom = box
        annotations.append(
            {
                "id": first_id + row,
                "image_id": image_id,
                "category_id": label + 1,
                "iscrowd": 0,
                "bbox": [left, top, right - left, bottom - top],
                "area": int(mask.sum()),
                "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
            }
        )
    return annotations


def _annotation_file(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"instances_{split}.json"


def _info(config: SyntheticConfig, split: str, count: int) -> JsonObject:
    """Return the config and the count of a split, as they are read back from JSON."""
    return {
        "description": "groupdetr synthetic",
        "revision": REVISION,
        "split": split,
        "count": count,
        **asdict(config),
        "sizes": list(config.sizes),
    }


def _is_written(config: SyntheticConfig, folder: Path, split: str, count: int) -> bool:
    """True if the split exists. Raises `DataError` if it was written from another config."""
    path = _annotation_file(folder, split)
    if not path.exists():
        return False
    try:
        written = dict(json.loads(path.read_bytes())["info"])
    except (ValueError, KeyError, TypeError):
        written = {}
    differences = []
    for key, value in _info(config, split, count).items():
        if written.get(key) != value:
            differences.append(f"{key} {written.get(key)}, not {value}")
    if differences:
        raise DataError(
            f"the folder holds another dataset: {'; '.join(differences[:3])}",
            str(path),
            "choose another folder, or delete this one to generate it again",
        )
    num_images = sum(1 for _ in (folder / "images" / split).glob("*.jpg"))
    return num_images >= count


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encode an image [H,W,3] at a quality that looks the same as the original.

    PNG would take five times as long to write and twice as long to read, because of the noise.
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=95, subsampling=0)
    return buffer.getvalue()


def save(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, also when two processes write the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    os.replace(partial, path)
