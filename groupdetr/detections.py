"""What users see: what was found in one picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Runs = dict[str, Any]  # COCO's compressed run lengths of a mask: {"size": [height, width], "counts": bytes}


@dataclass
class Detections:
    """Of one image, by falling score, in pixels of the original picture."""

    scores: Tensor  # [D] in [0,1]
    labels: Tensor  # [D] int64, contiguous class indices
    boxes: Tensor  # [D,4] x0,y0,x1,y1 in pixels
    masks: tuple[Runs, ...] | None = None  # [D] of the whole picture; None of a detector that says boxes alone

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, which: Tensor | slice) -> Detections:
        """Some of them: a slice, indices, or a bool for each."""
        masks = None
        if self.masks is not None:
            masks = tuple(self.masks[i] for i in torch.arange(len(self))[which].tolist())
        return Detections(self.scores[which], self.labels[which], self.boxes[which], masks)

    def above(self, score: float) -> Detections:
        """Those whose score is at least ``score``."""
        return self[self.scores >= score]
