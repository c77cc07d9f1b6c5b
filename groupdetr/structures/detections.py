"""What users see: what was found in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as coco
from numpy.typing import NDArray
from torch import Tensor

Runs = dict[
    str, Any
]  # COCO's compressed run lengths of a mask: {"size": [height, width], "counts": bytes}


@dataclass
class Detections:
    """Of one image, by falling score, in pixels of the original picture."""

    scores: Tensor  # [D] in [0,1]
    labels: Tensor  # [D] int64, contiguous class indices
    boxes: Tensor  # [D,4] x0,y0,x1,y1 in pixels
    masks: tuple[Runs, ...] | None = (
        None  # [D] of the whole picture; None of a detector that says boxes alone
    )

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, which: Tensor | slice) -> Detections:
        """Some of them: a slice, indices, or a bool for each."""
        masks = None
        if self.masks is not None:
            masks = tuple(self.masks[i] for i in torch.arange(len(self))[which].tolist())
        return Detections(self.scores[which], self.labels[which], self.boxes[which], masks)

    def xywh(self) -> NDArray[np.float64]:
        """[D,4] boxes as COCO has them: x, y, width, height in pixels."""
        corners = self.boxes.detach().cpu().double().numpy().reshape(-1, 4)
        return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)

    def segmentations(self) -> list[dict[str, Any]]:
        """[D] what masks add to each one's row of COCO's JSON; nothing where there are boxes alone."""
        if self.masks is None:
            return [{} for _ in range(len(self))]
        return [{"segmentation": as_text(runs)} for runs in self.masks]

    def iou(self, others: Detections) -> NDArray[np.float64]:
        """[D,E] intersections over unions with ``others``: of masks where both have them, else of boxes."""
        if not len(self) or not len(others):
            return np.zeros((len(self), len(others)))
        places: list[Any] = [list(d.masks) for d in (self, others) if d.masks is not None]
        if len(places) < 2:
            places = [d.xywh() for d in (self, others)]
        return np.asarray(coco.iou(*places, [0] * len(others)))

    def above(self, score: float) -> Detections:
        """Those whose score is at least ``score``."""
        return self[self.scores >= score]


def encoded(masks: NDArray[np.bool_]) -> tuple[Runs, ...]:
    """[D,H,W] as run lengths; quickest of what lies in memory as [D,W,H]."""
    return tuple(coco.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)))


def decoded(runs: Runs) -> NDArray[np.bool_]:
    """[H,W] of one mask."""
    return np.asarray(coco.decode(runs)).astype(bool)


def bounds(masks: Sequence[Runs]) -> Tensor:
    """[D,4] x0, y0, x1, y1 in pixels: the tightest boxes around masks, zeros around empty ones."""
    boxes = np.asarray(coco.toBbox(list(masks)), dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return torch.from_numpy(boxes)


def areas(masks: Sequence[Runs]) -> NDArray[np.float64]:
    """[D] pixels inside of each."""
    return np.asarray(coco.area(list(masks)), dtype=np.float64).reshape(len(masks))


def as_text(runs: Runs) -> dict[str, Any]:
    """As JSON has it: the counts are text."""
    return {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode("ascii")}


def from_text(row: Any) -> Runs:
    """The reverse; ValueError for anything else, such as polygons."""
    if not (
        isinstance(row, dict)
        and isinstance(row.get("counts"), str)
        and len(row.get("size", ())) == 2
    ):
        raise ValueError("not compressed run lengths")
    return {"size": row["size"], "counts": row["counts"].encode("ascii")}
