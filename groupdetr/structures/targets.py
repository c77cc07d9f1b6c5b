"""The annotated objects of an image and of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.structures.masks import Bitmaps
from groupdetr.structures.tensor_dataclass import Movable, expect


@dataclass
class Target(Movable):
    """The objects of one image. A batch is a list."""

    labels: Tensor  # [T] int64, contiguous class indices
    boxes: Tensor  # [T,4] cx,cy,w,h in [0,1] of the unpadded image, or [T,9] as in ops/boxes3d
    masks: Bitmaps | None = None  # [T], where they are to be learned; may be given as [T,H,W]

    def __post_init__(self) -> None:
        if isinstance(self.masks, Tensor):
            self.masks = Bitmaps.of(self.masks)
        masks = len(self.labels) if self.masks is None else len(self.masks)
        expect(masks == len(self.labels), f"{masks} masks for {len(self.labels)} labels")
        expect(self.labels.ndim == 1, f"labels must be [T], not {tuple(self.labels.shape)}")
        fits = self.boxes.shape in ((len(self.labels), 4), (len(self.labels), 9))
        expect(fits, f"boxes must be [T,4] or [T,9], not {tuple(self.boxes.shape)}")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Objects(Movable):
    """The targets of a batch laid side by side: padded to the T of the most crowded image."""

    labels: Tensor  # [B,T] int64; 0 in padded slots
    boxes: Tensor  # [B,T,4|9]; ones in padded slots: a box with an area, so that costs stay finite
    counts: tuple[int, ...]  # [B] objects of each image
    masks: tuple[Bitmaps | None, ...] = ()  # [B] of [T] each, where they are to be learned

    @property
    def bitmaps(self) -> list[Bitmaps]:
        """The masks, which must be there."""
        drawn = [masks for masks in self.masks if masks is not None]
        expect(
            len(drawn) == len(self.counts),
            "targets have no masks: Target(labels, boxes, masks), masks [T,H,W]",
        )
        return drawn

    @classmethod
    def from_targets(cls, targets: Sequence[Target], at_least: int = 0) -> Objects:
        """``at_least``: of slots, if no image has as many objects."""
        counts = tuple(len(t) for t in targets)
        rest = [max(*counts, at_least) - count for count in counts]
        labels = [F.pad(t.labels, (0, n)) for t, n in zip(targets, rest)]
        boxes = [F.pad(t.boxes, (0, 0, 0, n), value=1.0) for t, n in zip(targets, rest)]
        return cls(torch.stack(labels), torch.stack(boxes), counts, tuple(t.masks for t in targets))
