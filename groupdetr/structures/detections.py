"""Detections in one image: what a detector returns to users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray
from torch import Tensor

from groupdetr.structures.rle import RLE, JsonRLE, rle_to_json


@dataclass
class Detections:
    """The D detections in one image, sorted by decreasing score, in pixels of the original image.

    >>> scores, labels, boxes = torch.tensor([0.9, 0.4]), torch.tensor([2, 0]), torch.rand(2, 4)
    >>> detections = groupdetr.Detections(scores, labels, boxes)
    >>> len(detections.above(0.5))
    1
    >>> best = detections[:10]  # the ten best; of these two, both
    """

    scores: Tensor  # [D] in [0,1]
    labels: Tensor  # [D] int64, contiguous class indices
    boxes: Tensor  # [D,4] x0,y0,x1,y1 in pixels
    masks: tuple[RLE, ...] | None = None  # [D] at the size of the image; None without masks

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Tensor | slice) -> Detections:
        """Return the detections of a slice, of a tensor of indices, or of a bool for each."""
        masks = None
        if self.masks is not None:
            positions = torch.arange(len(self))[index].tolist()
            masks = tuple(self.masks[position] for position in positions)
        return Detections(self.scores[index], self.labels[index], self.boxes[index], masks)

    def xywh(self) -> NDArray[np.float64]:
        """Return boxes in COCO's format, [D,4]: x, y, width, height in pixels."""
        corners = self.boxes.detach().cpu().double().numpy().reshape(-1, 4)
        low, high = corners[:, :2], corners[:, 2:]
        return np.concatenate([low, high - low], axis=1)

    def segmentations(self) -> list[dict[str, JsonRLE]]:
        """Return the masks as fields of COCO's results JSON, one dict for each of the D detections.

        It is ``{"segmentation": ...}``, or ``{}`` if there are no masks.
        """
        if self.masks is None:
            return [{} for _ in range(len(self))]
        return [{"segmentation": rle_to_json(rle)} for rle in self.masks]

    def iou(self, others: Detections) -> NDArray[np.float64]:
        """Return the IoU with E other detections: [D,E].

        It is that of the masks if both have masks, otherwise that of the boxes.
        """
        if len(self) == 0 or len(others) == 0:
            return np.zeros((len(self), len(others)))
        not_crowd = [0] * len(others)
        if self.masks is not None and others.masks is not None:
            return np.asarray(coco_mask.iou(list(self.masks), list(others.masks), not_crowd))
        return np.asarray(coco_mask.iou(self.xywh(), others.xywh(), not_crowd))

    def above(self, score: float) -> Detections:
        """Return the detections with a score of at least ``score``."""
        return self[self.scores >= score]

    def of_classes(self, labels: Sequence[int]) -> Detections:
        """Return the detections of the classes with these labels."""
        chosen = torch.tensor(labels, dtype=self.labels.dtype, device=self.labels.device)
        return self[torch.isin(self.labels, chosen)]


def encode_masks(masks: NDArray[np.bool_]) -> tuple[RLE, ...]:
    """Encode masks [D,H,W]. It is fastest if they lie in memory as [D,W,H]."""
    columns_first = np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)
    return tuple(coco_mask.encode(columns_first))


def decode_mask(rle: RLE) -> NDArray[np.bool_]:
    """Decode one mask: [H,W]."""
    return np.asarray(coco_mask.decode(rle)).astype(bool)


def masks_to_boxes(masks: Sequence[RLE]) -> Tensor:
    """Return the tightest boxes around masks: [D,4] x0, y0, x1, y1 in pixels, float64.

    The box of an empty mask is all zeros.
    """
    boxes = np.asarray(coco_mask.toBbox(list(masks)), dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return torch.from_numpy(boxes)


def mask_areas(masks: Sequence[RLE]) -> NDArray[np.float64]:
    """Return the number of pixels inside each mask: [D]."""
    return np.asarray(coco_mask.area(list(masks)), dtype=np.float64).reshape(len(masks))
