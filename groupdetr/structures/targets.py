"""The annotated objects of an image, and of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.structures.masks import CroppedMasks
from groupdetr.structures.tensor_dataclass import TensorDataclass, require


@dataclass
class Target(TensorDataclass):
    """The T objects of one image. A batch is a list of targets.

    Example::

        labels, boxes = torch.tensor([2]), torch.tensor([[0.5, 0.5, 0.2, 0.3]])
        target = Target(labels, boxes)  # one object of class 2
    """

    labels: Tensor  # [T] int64, contiguous class indices
    # [T,4] cx,cy,w,h in [0,1] of the unpadded image, or [T,9] 3D boxes as in `ops.boxes3d`
    boxes: Tensor
    masks: CroppedMasks | None = None  # [T] if masks are to be learned; [T,H,W] is converted

    def __post_init__(self) -> None:
        if isinstance(self.masks, Tensor):
            self.masks = CroppedMasks.from_dense(self.masks)
        require(self.labels.ndim == 1, f"labels must be [T], not {tuple(self.labels.shape)}")
        objects = len(self.labels)
        shape = tuple(self.boxes.shape)
        require(
            shape in ((objects, 4), (objects, 9)),
            f"boxes of {objects} labels must be [{objects},4] or [{objects},9], not {shape}",
        )
        masks = objects if self.masks is None else len(self.masks)
        require(masks == objects, f"{masks} masks for {objects} labels")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class TargetBatch(TensorDataclass):
    """The targets of a batch in one tensor, padded to the T of the image with most objects."""

    labels: Tensor  # [B,T] int64; 0 in the padding
    boxes: Tensor  # [B,T,4|9]; ones in the padding, boxes with an area, so that costs are finite
    counts: tuple[int, ...]  # [B] number of objects of each image
    masks: tuple[CroppedMasks | None, ...] = ()  # [B] of [T] each, if masks are to be learned

    @property
    def cropped_masks(self) -> list[CroppedMasks]:
        """The masks of all images. `ValueError` if an image has none."""
        masks = [mask for mask in self.masks if mask is not None]
        require(
            len(masks) == len(self.counts),
            "targets have no masks: create them as Target(labels, boxes, masks), masks [T,H,W]",
        )
        return masks

    @classmethod
    def from_targets(cls, targets: Sequence[Target], min_objects: int = 0) -> TargetBatch:
        """Pad and stack targets. T is at least ``min_objects``."""
        counts = tuple(len(target) for target in targets)
        padded_count = max(*counts, min_objects)
        labels, boxes = [], []
        for target, count in zip(targets, counts):
            labels.append(F.pad(target.labels, (0, padded_count - count)))
            boxes.append(F.pad(target.boxes, (0, 0, 0, padded_count - count), value=1.0))
        masks = tuple(target.masks for target in targets)
        return cls(torch.stack(labels), torch.stack(boxes), counts, masks)
