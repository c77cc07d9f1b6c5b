"""A sheet of augmented images with their boxes, to be looked at before a training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from groupdetr.data.dataset import DetectionDataset, SampleIndex
from groupdetr.data.records import CocoSplit, Record
from groupdetr.data.transforms import Transform
from groupdetr.ops.boxes import cxcywh_to_xyxy
from groupdetr.visualize.images import draw_boxes, palette

COLUMNS = 4  # the image as the network sees it in validation, and three draws of the augmentation
GAP = 8  # pixels between two images
BACKGROUND = (255, 255, 255)


def augmentation_sheet(
    split: CocoSplit, original: Transform, augmentation: Transform, count: int, side: int = 320
) -> Image.Image:
    """Return a sheet with a row for each of ``count`` images, evenly spaced over the split.

    Each row has the image after ``original``, the resize of validation, and then three draws of the
    ``augmentation``, those of the first epochs of a training with seed 0. Images with objects come
    first. A cell is ``side`` pixels wide and high.
    """
    records = _selection(split.records, count)
    as_in_validation = DetectionDataset(records, original)
    augmented = DetectionDataset(records, augmentation)
    names = [category.name for category in split.categories]
    sheet = Image.new(
        "RGB",
        (COLUMNS * (side + GAP) + GAP, len(records) * (side + GAP) + GAP),
        BACKGROUND,
    )
    for row in range(len(records)):
        cells = [_cell(as_in_validation, SampleIndex(0, row), names, side)]
        for epoch in range(COLUMNS - 1):
            cells.append(_cell(augmented, SampleIndex(epoch, row), names, side))
        for column, cell in enumerate(cells):
            x, y = (GAP + index * (side + GAP) for index in (column, row))
            # An image that is smaller than its cell is in the middle of it.
            offset = ((side - cell.width) // 2, (side - cell.height) // 2)
            sheet.paste(cell, (x + offset[0], y + offset[1]))
    return sheet


def _selection(records: Sequence[Record], count: int) -> list[Record]:
    """Return ``count`` records, evenly spaced, those with objects first."""
    with_objects = [record for record in records if record.trainable.any()]
    candidates = with_objects if len(with_objects) >= count else list(records)
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
