"""Mosaic augmentation (Bochkovskiy et al., YOLOv4, 2020): four images around a random point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator

from groupdetr.data.sample import PlacedSegmentation, Sample
from groupdetr.data.transforms import GREY, AugmentedImage, random_integer

PROBABILITY = 0.5  # of a mosaic instead of the image alone, as in recipes of the DETR family
CENTRE = (0.25, 0.75)  # where the four images meet, as a fraction of the side
SCALES = (0.5, 1.0)  # the longest side of each image, as a fraction of the side of the mosaic
# As in YOLOv5, an object is dropped if less of it is left.
MIN_SIDE = 2.0  # pixels of the mosaic
MIN_AREA = 0.1  # of the area of its box


@dataclass(frozen=True)
class Mosaic:
    """Puts an image and three others around a point of a square of ``side`` pixels.

    Each image is resized and touches the point with a corner. What leads out of the square is cut
    off, and what no image covers is grey. Boxes are clipped to what is seen of their image; those
    of which little is left are dropped.
    """

    side: int

    def __call__(
        self, sample: Sample, other: Callable[[int], Sample], count: int, generator: Generator
    ) -> Sample:
        """Return a mosaic with probability 0.5, and otherwise the sample as it is.

        ``other`` returns the sample of one of the ``count`` images by its index.
        """
        if torch.rand(1, generator=generator) >= PROBABILITY:
            return sample
        others = [other(random_integer(0, count - 1, generator)) for _ in range(3)]
        drawn = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        low, high = CENTRE
        x, y = (round(self.side * (low + (high - low) * number)) for number in drawn[:2])
        scale = SCALES[0] + (SCALES[1] - SCALES[0]) * drawn[2]
        return self.compose([sample, *others], (x, y), scale)

    def compose(self, samples: list[Sample], centre: tuple[int, int], scale: float) -> Sample:
        """Return the mosaic of four samples: at the top left, top right, bottom left and right.

        They meet in ``centre`` (x, y). The longest side of each is ``scale`` of the mosaic's.
        """
        channels_last = torch.full((self.side, self.side, 3), GREY, dtype=torch.uint8)
        canvas = channels_last.permute(2, 0, 1)
        boxes, labels = [], []
        segmentations: list[PlacedSegmentation] = []
        for position, sample in enumerate(samples):
            height, width = sample.image.size
            ratio = self.side * scale / max(height, width)
            resized = sample.image.resized(
                max(1, round(height * ratio)), max(1, round(width * ratio))
            )
            height, width = resized.size
            left = centre[0] - width if position % 2 == 0 else centre[0]
            top = centre[1] - height if position < 2 else centre[1]
            # The window of the mosaic that shows this image.
            x0, y0 = max(0, left), max(0, top)
            x1, y1 = min(self.side, left + width), min(self.side, top + height)
            canvas[:, y0:y1, x0:x1] = resized.image[:, y0 - top : y1 - top, x0 - left : x1 - left]

            whole = resized.boxes + np.array([left, top, left, top], dtype=np.float32)
            visible = whole.clip((x0, y0, x0, y0), (x1, y1, x1, y1)).astype(np.float32)
            rows = np.flatnonzero(enough_is_left(whole, visible))
            boxes.append(visible[rows])
            labels.append(sample.labels[rows])
            if sample.segmentations is not None:
                # `from_original` has the resize alone: these images were not augmented before.
                into_larger = resized.from_original.followed_by(shift=(left, top))
                for row in rows.tolist():
                    placed = PlacedSegmentation(
                        sample.segmentations[row].segmentation, into_larger, (x0, y0, x1, y1)
                    )
                    segmentations.append(placed)
        return Sample(
            AugmentedImage(canvas, np.concatenate(boxes)),
            np.concatenate(labels),
            None if samples[0].segmentations is None else tuple(segmentations),
        )


def enough_is_left(whole: NDArray[np.float32], visible: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return [T] bool: which objects stay, given their boxes [T,4] and the visible part of each.

    Boxes are x0, y0, x1, y1 in pixels.
    """
    sides = visible[:, 2:] - visible[:, :2]
    whole_sides = whole[:, 2:] - whole[:, :2]
    area = sides.prod(axis=1) / np.maximum(whole_sides.prod(axis=1), 1e-9)
    left = (sides >= MIN_SIDE).all(axis=1) & (area >= MIN_AREA)
    return np.asarray(left, dtype=np.bool_)
