"""Instance segmentation: COCO masks in, scored masks out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.data.formats import DataSet
from groupdetr.evaluation.coco import Evaluation, evaluate
from groupdetr.settings import Settings
from groupdetr.structures.detections import Detections, Runs, bounds, encoded
from groupdetr.structures.masks import Canvas
from groupdetr.structures.predictions import Predictions
from groupdetr.tasks.detection2d.task import DetectionTask, best_pairs

PIXELS = 1 << 24  # of masks that are worked on at once


@torch.no_grad()
def masks_of(answer: Predictions, sizes: Sequence[tuple[int, int]], most: int) -> list[Detections]:
    """The ``most`` best (query, class) pairs of each image, with masks of pictures of (width, height).

    As in Mask2Former: scores by softmax, no threshold, no non-maximum suppression; a query may appear with several
    classes. A score is multiplied by how sure the mask is of its pixels. Boxes are the tightest around the masks.
    """
    scores, query, label = best_pairs(answer.logits.float().softmax(-1)[..., :-1], most)
    embedding = answer.masks.embedding
    chosen = embedding.gather(1, query.unsqueeze(-1).expand(-1, -1, embedding.shape[-1])).float()
    found = []
    for image, size in enumerate(sizes):
        sureness, masks = drawn(chosen[image], answer.masks.canvas, image, size)
        sure, order = (scores[image] * sureness).sort(descending=True, stable=True)
        ranked = tuple(masks[place] for place in order.tolist())
        found.append(
            Detections(sure.cpu(), label[image, order].cpu(), bounds(ranked).float(), ranked)
        )
    return found


def drawn(
    embedding: Tensor, canvas: Canvas, image: int, size: tuple[int, int]
) -> tuple[Tensor, list[Runs]]:
    """Embeddings [D,C] to D masks of one picture of (width, height), and how sure each is, [D]: the mean probability
    of the pixels inside. So many at once as fit into PIXELS."""
    width, height = size
    at_once = max(1, PIXELS // max(width * height, canvas.shape[0] * canvas.shape[1]))
    pixels, inside = canvas.pixels[image].float(), canvas.sizes[image].tolist()
    sureness, masks = list[Tensor](), list[Runs]()
    for part in embedding.split(at_once):
        maps = (part @ pixels.flatten(1)).unflatten(1, pixels.shape[1:])
        logits = in_picture(maps, canvas.shape, inside, (height, width))
        mask = logits > 0
        sureness.append((logits.sigmoid() * mask).sum((1, 2)) / (mask.sum((1, 2)) + 1e-6))
        masks += encoded(mask.transpose(1, 2).contiguous().cpu().numpy().transpose(0, 2, 1))
    return torch.cat(sureness), masks


def in_picture(
    logits: Tensor, padded: tuple[int, int], inside: Sequence[int], size: tuple[int, int]
) -> Tensor:
    """Maps [D,h,w] of a padded image to its picture, [D,H,W]: sizes are height, width, with and without the padding,
    and of the picture."""
    logits = F.interpolate(logits.unsqueeze(1), padded, mode="bilinear", align_corners=False)
    logits = logits[..., : inside[0], : inside[1]]
    return F.interpolate(logits, size, mode="bilinear", align_corners=False).squeeze(1)


class InstanceTask(DetectionTask):
    """Instance segmentation on a data set with ``train`` and ``val`` splits whose objects have masks."""

    kind: ClassVar[str] = "mask"
    masks: ClassVar[bool] = True
    found = staticmethod(masks_of)

    def __init__(self, data: DataSet, settings: Settings, most: int, workers: int = 0) -> None:
        """Pictures without objects are not trained on, as in detectron2."""
        splits = {**data.splits, "train": data.splits["train"].with_objects()}
        super().__init__(DataSet(data.root, splits), settings, most, workers)

    def evaluate(self, found: Sequence[Detections]) -> Evaluation:
        """AP of masks, and beside it that of the boxes around them."""
        return evaluate(self.data.splits["val"], found, self.kind).beside(super().evaluate(found))

    def truth(self, index: int) -> Detections:
        record = self.val.records[index]
        outlines = record.outlines()
        assert outlines is not None, "the data set was read with masks"
        masks = tuple(shape.runs(record.height, record.width) for shape in outlines)
        return replace(super().truth(index), masks=masks)
