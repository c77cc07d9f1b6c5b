"""A detection data set drawn from a seed: shapes with exact boxes and masks, as easy or as hard as asked.

A class is a shape; colour, rotation, stretch and texture say nothing about it. A picture depends on the seed, the name
of its split, its index and the config alone, so any one can be drawn again without the others.
Lengths are pixels, angles radians.
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
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from groupdetr.data.synthetic_rendering import picture
from groupdetr.data.synthetic_shapes import SHAPES, Piece, coverage
from groupdetr.errors import DataError

Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]  # split, pictures done, pictures in all

REVISION = 1  # raise it when a config draws something else than before: an old folder is not taken for a new one
TRIES = 24  # places tried for an object before it is left out
DIAMETERS = (
    (0.13, 0.2),
    (0.2, 0.32),
    (0.32, 0.48),
)  # small, medium, large: diameter over image side
LEAST_VISIBLE = (
    0.1  # of an object, even at occlusion 1: a box around nearly nothing is a wrong label
)


@dataclass(frozen=True)
class SyntheticConfig:
    """What is drawn. ``texture``: plain 0 to busy 1. ``occlusion``: the largest share of an object others may hide.

    ``sizes``: weights of small, medium and large. A picture asks for ``min_objects`` to ``max_objects`` objects; the
    first always finds a place, a later one that finds none in a crowded picture is left out.
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
        few, many = self.min_objects, self.max_objects
        _demand(
            self.image_size >= 32, f"image_size must be at least 32 pixels, not {self.image_size}"
        )
        _demand(
            1 <= self.num_classes <= len(SHAPES),
            f"num_classes must be 1 to {len(SHAPES)}, not {self.num_classes}",
        )
        _demand(
            0 <= few <= many, f"0 <= min_objects <= max_objects must hold, not {few} and {many}"
        )
        _demand(0 <= self.texture <= 1, f"texture must be between 0 and 1, not {self.texture}")
        _demand(
            0 <= self.occlusion <= 1, f"occlusion must be between 0 and 1, not {self.occlusion}"
        )
        usable = len(self.sizes) == 3 and min(self.sizes) >= 0 and 0 < sum(self.sizes) < math.inf
        _demand(
            usable,
            f"sizes must be three weights (small, medium, large), not negative or all 0, not {self.sizes}",
        )
        _demand(self.seed >= 0, f"seed must be at least 0, not {self.seed}")
        # Plain floats, so that configs that are equal draw equal pictures and are equal in JSON.
        object.__setattr__(self, "texture", float(self.texture))
        object.__setattr__(self, "occlusion", float(self.occlusion))
        object.__setattr__(self, "sizes", tuple(float(weight) for weight in self.sizes))


@dataclass(frozen=True)
class Drawing:
    """One picture and its objects, farthest first; a box is tight around what is visible of its object."""

    image: Array  # [H,W,3] uint8
    boxes: Array  # [T,4] float32, xyxy pixels, right and bottom exclusive
    labels: Array  # [T] int64, from 0
    masks: Array  # [T,H,W] bool, disjoint


def class_names(config: SyntheticConfig) -> tuple[str, ...]:
    """Names by label."""
    return tuple(SHAPES)[: config.num_classes]


def draw(config: SyntheticConfig, split: str, index: int) -> Drawing:
    """Picture ``index`` of a split. Layout and looks have a random stream each: ``texture`` moves no box."""
    seeds = np.random.SeedSequence(config.seed, spawn_key=(zlib.crc32(split.encode()), index))
    layout, looks = (np.random.default_rng(child) for child in seeds.spawn(2))
    pieces, owner = _arrange(config, layout)
    masks: Array = owner == np.arange(1, len(pieces) + 1)[:, None, None]
    labels = np.array([piece.label for piece in pieces], dtype=np.int64)
    return Drawing(
        picture(config.image_size, pieces, config.texture, looks),
        _tight_boxes(masks),
        labels,
        masks,
    )


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


# Layout: which object stands where.


def _arrange(config: SyntheticConfig, rng: np.random.Generator) -> tuple[list[Piece], Array]:
    """Pieces from back to front, and whose each pixel is [H,W]: 0 nobody's, else 1 + the index of the piece."""
    owner = np.zeros((config.image_size, config.image_size), dtype=np.int64)
    pieces: list[Piece] = []
    for _ in range(rng.integers(config.min_objects, config.max_objects, endpoint=True)):
        piece = _place(config, pieces, owner, rng)
        if piece is not None:
            pieces.append(piece)
            owner[piece.window][piece.mask] = len(pieces)
    return pieces, owner


def _place(
    config: SyntheticConfig, pieces: list[Piece], owner: Array, rng: np.random.Generator
) -> Piece | None:
    """A new front piece that leaves enough of the others visible; each try is a little smaller than the last."""
    label = int(rng.integers(config.num_classes))
    weights = np.array(config.sizes) / sum(config.sizes)
    diameter = config.image_size * rng.uniform(*DIAMETERS[rng.choice(3, p=weights)])
    whole = np.array([np.count_nonzero(piece.mask) for piece in pieces])
    needed = max(1 - config.occlusion, LEAST_VISIBLE) * whole
    visible = _areas(owner, len(pieces))
    for _ in range(TRIES):
        piece = _propose(config, label, diameter, pieces, rng)
        if (visible - _areas(owner[piece.window][piece.mask], len(pieces)) >= needed).all():
            return piece
        diameter = max(config.image_size * DIAMETERS[0][0], 0.93 * diameter)
    return None


def _areas(owner: Array, count: int) -> Array:
    """How many pixels each of ``count`` pieces has among these: [count]."""
    return np.bincount(owner.ravel(), minlength=count + 1)[1:]


def _propose(
    config: SyntheticConfig,
    label: int,
    diameter: float,
    pieces: list[Piece],
    rng: np.random.Generator,
) -> Piece:
    """Somewhere, or, the more often the more occlusion is wanted, over the rim of an object that is already there."""
    covered = coverage(label, diameter, rng)
    side, room = len(covered), config.image_size - len(covered)
    top, left = rng.uniform(0, room, 2)
    if pieces and rng.random() < config.occlusion:
        other = pieces[rng.integers(len(pieces))]
        angle, reach = rng.uniform(0, math.tau), 0.25 * (side + len(other.coverage))
        centring = (len(other.coverage) - side) / 2
        top = min(max(other.top + centring + reach * math.sin(angle), 0), room)
        left = min(max(other.left + centring + reach * math.cos(angle), 0), room)
    return Piece(label, covered, int(top), int(left))


def _tight_boxes(masks: Array) -> Array:
    """Masks [T,H,W], each with a pixel, to boxes [T,4]."""
    columns, rows = masks.max(1), masks.max(2)
    right, bottom = (
        columns.shape[1] - columns[:, ::-1].argmax(1),
        rows.shape[1] - rows[:, ::-1].argmax(1),
    )
    return np.stack([columns.argmax(1), rows.argmax(1), right, bottom], axis=1).astype(np.float32)


# Files: the COCO layout.


def write(
    config: SyntheticConfig,
    folder: Path | str,
    counts: Mapping[str, int],
    progress: Progress | None = None,
) -> None:
    """Writes ``images/{split}/000001.jpg`` and ``annotations/instances_{split}.json``, ``counts[split]`` pictures each.

    A split that is there already, from this config and count, is kept; anything else in its place is a DataError.
    The annotations come last, so a split that has them is whole.
    """
    folder = Path(folder)
    missing = [
        split for split, count in counts.items() if not _is_written(config, folder, split, count)
    ]
    for split in missing:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(counts[split]):
            drawing, name = draw(config, split, index), f"{index + 1:06d}.jpg"
            save(folder / "images" / split / name, jpeg(drawing.image))
            images.append(
                {
                    "id": index + 1,
                    "file_name": name,
                    "width": config.image_size,
                    "height": config.image_size,
                }
            )
            annotations += _annotations(drawing, index + 1, len(annotations) + 1)
            if progress is not None:
                progress(split, index + 1, counts[split])
        categories = [
            {"id": label + 1, "name": name} for label, name in enumerate(class_names(config))
        ]
        content = {
            "info": _info(config, split, counts[split]),
            "images": images,
            "annotations": annotations,
        }
        save(
            _annotation_file(folder, split),
            json.dumps(content | {"categories": categories}).encode(),
        )


def run_lengths(mask: Array) -> list[int]:
    """COCO's uncompressed RLE of a mask [H,W]: the lengths of its runs down the columns, the first of zeros."""
    pixels = mask.ravel(order="F")
    starts = np.flatnonzero(np.diff(pixels, prepend=False))
    lengths: list[int] = np.diff(starts, prepend=0, append=pixels.size).tolist()
    return lengths


def _annotations(drawing: Drawing, image_id: int, first_id: int) -> list[dict[str, Any]]:
    records = []
    for number, (box, label, mask) in enumerate(
        zip(drawing.boxes.tolist(), drawing.labels.tolist(), drawing.masks)
    ):
        left, top, right, bottom = box
        record = {
            "id": first_id + number,
            "image_id": image_id,
            "category_id": label + 1,
            "iscrowd": 0,
        }
        record |= {"bbox": [left, top, right - left, bottom - top], "area": int(mask.sum())}
        records.append(
            record | {"segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)}}
        )
    return records


def _annotation_file(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"instances_{split}.json"


def _info(config: SyntheticConfig, split: str, count: int) -> dict[str, Any]:
    """Where a split comes from, as JSON gives it back."""
    recorded = asdict(config) | {"sizes": list(config.sizes)}
    return {
        "description": "groupdetr synthetic",
        "revision": REVISION,
        "split": split,
        "count": count,
    } | recorded


def _is_written(config: SyntheticConfig, folder: Path, split: str, count: int) -> bool:
    path, wanted = _annotation_file(folder, split), _info(config, split, count)
    if not path.exists():
        return False
    try:
        found = dict(json.loads(path.read_bytes())["info"])
    except (ValueError, KeyError, TypeError):
        found = {}
    differing = [
        f"{key} {found.get(key)}, not {value}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if differing:
        remedy = "choose another folder, or delete this one to draw it again"
        raise DataError(
            f"the folder holds another data set: {'; '.join(differing[:3])}", str(path), remedy
        )
    return sum(1 for _ in (folder / "images" / split).glob("*.jpg")) >= count


def jpeg(image: Array) -> bytes:
    """At a quality that looks the same: PNG takes the grain of a picture five times as long to write, twice to read."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=95, subsampling=0)
    return buffer.getvalue()


def save(path: Path, content: bytes) -> None:
    """Whole or not at all, also when two processes write the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    os.replace(partial, path)
