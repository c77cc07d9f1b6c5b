"""Object detection: COCO boxes in, scored boxes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from groupdetr.data import transforms
from groupdetr.data.batch import Pictures
from groupdetr.data.check import Report, check
from groupdetr.data.formats import DataSet, load
from groupdetr.data.worst_case import Worst, worst_of
from groupdetr.errors import UsageError
from groupdetr.evaluation.coco import FIGURES, Evaluation, evaluate
from groupdetr.ops.boxes import cxcywh_to_xyxy
from groupdetr.settings import Settings
from groupdetr.structures.detections import Detections
from groupdetr.structures.predictions import Predictions

AUGMENTATIONS: dict[str, Callable[[int], transforms.Transform]] = {
    "detr": transforms.training,
    "lsj": transforms.jittering,
    "flip": transforms.flipping,
    "none": transforms.validation,
}
CACHE = 1 << 30  # bytes of decoded training pictures that all loader processes together keep


def augmentation(name: str) -> Callable[[int], transforms.Transform]:
    if name not in AUGMENTATIONS:
        raise UsageError(
            f"--augment {name} is for scenes", remedy=f"for pictures: {', '.join(AUGMENTATIONS)}"
        )
    return AUGMENTATIONS[name]


@torch.no_grad()
def boxes_of(answer: Predictions, sizes: Sequence[tuple[int, int]], most: int) -> list[Detections]:
    """The ``most`` best (query, class) pairs of each image, boxes in pixels of pictures of (width, height).

    As in Deformable DETR: scores by sigmoid, no threshold, no non-maximum suppression; a query may appear with
    several classes. Boxes may reach over the picture's edge.
    """
    scores, query, label = best_pairs(answer.logits.float().sigmoid(), most)
    boxes = cxcywh_to_xyxy(answer.boxes.float()).gather(1, query.unsqueeze(-1).expand(-1, -1, 4))
    boxes = boxes * torch.tensor([[w, h, w, h] for w, h in sizes], device=boxes.device).unsqueeze(1)
    return [Detections(*parts) for parts in zip(scores.cpu(), label.cpu(), boxes.cpu())]


def best_pairs(scores: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B,N,classes] to the scores, queries and classes [B,D] of the best pairs of each image, by falling score."""
    best, places = scores.flatten(1).topk(min(most, scores[0].numel()), dim=1)
    return best, places.div(scores.shape[-1], rounding_mode="floor"), places % scores.shape[-1]


class DetectionTask:
    """Detection on a data set with ``train`` and ``val`` splits. ``most``: detections kept of an image."""

    kind: ClassVar[str] = "box"  # what AP is of
    sees: ClassVar[str] = "pictures"
    figures: ClassVar[tuple[str, ...]] = FIGURES[
        :6
    ]  # that are shown while training, the deciding one first
    masks: ClassVar[bool] = False  # are the masks of objects asked for?
    found = staticmethod(boxes_of)  # what answers [B,N,.] say, whatever the data set

    def __init__(self, data: DataSet, settings: Settings, most: int, workers: int = 0) -> None:
        imgsz, augment = settings.imgsz, augmentation(settings.augment)
        self.data, self.settings, self.most, self.loaders = data, settings, most, max(1, workers)
        self.train = Pictures(
            data.splits["train"].records, augment(imgsz), settings.seed, CACHE // self.loaders
        )
        self.val = Pictures(data.splits["val"].records, transforms.validation(imgsz))

    @classmethod
    def read(cls, data: Path, images: Path | None) -> DataSet:
        """A data set from disk; `DataError` for the first thing that would mislead training."""
        return load(data, images, masks=cls.masks)

    @classmethod
    def check(cls, data: Path, images: Path | None, num_queries: int, decode: bool) -> Report:
        """Everything that is wrong with it."""
        return check(data, images, num_queries, decode, masks=cls.masks)

    @property
    def kept(self) -> int:
        """Every loader process sees every picture sooner or later."""
        return self.loaders * self.train.kept

    def worst(self, burden: Callable[[int], int]) -> Worst:
        return worst_of(self.train.records, self.settings.imgsz, self.settings.augment, burden)

    def postprocess(self, answer: Predictions, indices: Sequence[int]) -> list[Detections]:
        records = [self.val.records[index] for index in indices]
        return self.found(answer, [(record.width, record.height) for record in records], self.most)

    def evaluate(self, found: Sequence[Detections]) -> Evaluation:
        return evaluate(self.data.splits["val"], found)

    def truth(self, index: int) -> Detections:
        """What is in val picture ``index``, as if it had been found."""
        corners, labels = self.val.records[index].training()
        return Detections(
            torch.ones(len(labels)), torch.from_numpy(labels), torch.from_numpy(corners).float()
        )

    def names(self, indices: Sequence[int]) -> list[str]:
        return [self.train.records[index].file_name for index in indices]
