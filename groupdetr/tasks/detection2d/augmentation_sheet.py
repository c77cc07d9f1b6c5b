"""A sheet of augmented images with their boxes, to be looked at before a training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from groupdetr.data.dataset import DetectionDataset, SampleIndex
from groupdetr.data.records import CocoSplit, Record
from groupdetr.data.sample import SampleTransform
from groupdetr.data.transforms import ANY_SHAPE, InputShape, val_transform
from groupdetr.ops.boxes import cxcywh_to_xyxy
from groupdetr.tasks.detection2d.task import Augmentation
from groupdetr.visualize.images import draw_boxes, palette

COLUMNS = 4  # the image as the network sees it in validation, and three draws of the augmentation
GAP = 8  # pixels between two images
BACKGROUND = (255, 255, 255)


def augmentation_sheet(
    split: CocoSplit,
    augmentation: Augmentation,
    imgsz: int,
    count: int,
    side: int = 320,
    own_transform: SampleTransform | None = None,
    shape: InputShape = ANY_SHAPE,
) -> Image.Image:
    """Return a sheet with a row for each of ``count`` images, evenly spaced over the split.

    Each row has the image as in validation at ``imgsz``, and then three draws of the augmentation,
    those of the first epochs of a training with seed 0. Images with objects come first. A cell is
    ``side`` pixels wide and high.
    """
    selected = _selection(split.records, count)
    as_in_validation = DetectionDataset(split.records, val_transform(imgsz, shape))
    augmented = augmentation.dataset(split.records, imgsz, own_transform=own_transform, shape=shape)
    names = [category.name for category in split.categories]
    sheet = Image.new(
        "RGB",
        (COLUMNS * (side + GAP) + GAP, len(selected) * (side + GAP) + GAP),
        BACKGROUND,
    )
    for row, index in enumerate(selected):
        cells = [_cell(as_in_validation, SampleIndex(0, index), names, side)]
        for epoch in range(COLUMNS - 1):
            cells.append(_cell(augmented, SampleIndex(epoch, index), names, side))
        for column, cell in enumerate(cells):
            x, y = (GAP + position * (side + GAP) for position in (column, row))
            # An image that is smaller than its cell is in the middle of it.
            offset = ((side - cell.width) // 2, (side - cell.height) // 2)
            sheet.paste(cell, (x + offset[0], y + offset[1]))
    return sheet


def _selection(records: Sequence[Record], count: int) -> list[int]:
    """Return the indices of ``count`` records, evenly spaced, those with objects first."""
    with_objects = [index for index, record in enumerate(records) if record.trainable.any()]
    candidates = with_objects if len(with_objects) >= count else list(range(len(records)))
    rows = np.linspace(0, len(candidates) - 1, min(count, len(candidates))).round().astype(int)
    return [candidates[row] for row in rows]


def _cell(
    dataset: DetectionDataset, index: SampleIndex, names: Sequence[str], side: int
) -> Image.Image:
    """Return a sample with its boxes and classes, at most ``side`` pixels wide and high."""
    pixels, target, _ = dataset[index]
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    scale = side / max(image.size)
    image = image.resize([max(1, round(length * scale)) for length in image.size])
    width, height = image.size
    boxes = cxcywh_to_xyxy(target.boxes).numpy() * [width, height, width, height]
    labels = target.labels.tolist()
    captions = [names[label] for label in labels]
    return draw_boxes(image, boxes, captions, [palette(label) for label in labels])
