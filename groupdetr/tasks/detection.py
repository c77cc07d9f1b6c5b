"""Object detection: COCO boxes in, scored boxes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from groupdetr.data import transforms
from groupdetr.data.batch import Pictures
from groupdetr.data.formats import DataSet
from groupdetr.detections import Detections
from groupdetr.evaluation.coco import Evaluation, evaluate
from groupdetr.ops.boxes import cxcywh_to_xyxy
from groupdetr.settings import Settings
from groupdetr.structures import Predictions

AUGMENTATIONS: dict[str, Callable[[int], transforms.Transform]] = {
    "detr": transforms.training,
    "lsj": transforms.jittering,
    "flip": transforms.flipping,
    "none": transforms.validation,
}
CACHE = 1 << 30  # bytes of decoded training pictures that all loader processes together keep


class DetectionTask:
    """Detection on a data set with ``train`` and ``val`` splits. ``most``: detections kept of an image."""

    def __init__(self, data: DataSet, settings: Settings, most: int, workers: int = 0) -> None:
        imgsz, augment = settings.imgsz, AUGMENTATIONS[settings.augment]
        self.data, self.most = data, most
        self.train = Pictures(data.splits["train"].records, augment(imgsz), settings.seed, CACHE // max(1, workers))
        self.val = Pictures(data.splits["val"].records, transforms.validation(imgsz))

    def postprocess(self, answer: Predictions, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        return postprocess(answer, sizes, self.most)

    def evaluate(self, found: Sequence[Detections]) -> Evaluation:
        return evaluate(self.data.splits["val"], found)

    def truth(self, index: int) -> Detections:
        """What is in val picture ``index``, as if it had been found."""
        corners, labels = self.val.records[index].training()
        return Detections(torch.ones(len(labels)), torch.from_numpy(labels), torch.from_numpy(corners).float())

    def names(self, indices: Sequence[int]) -> list[str]:
        return [self.train.records[index].file_name for index in indices]


@torch.no_grad()
def postprocess(answer: Predictions, sizes: Sequence[tuple[int, int]], most: int) -> list[Detections]:
    """The ``most`` best (query, class) pairs of each image, boxes in pixels of pictures of (width, height).

    As in Deformable DETR: scores by sigmoid, no threshold, no non-maximum suppression; a query may appear with
    several classes. Boxes may reach over the picture's edge.
    """
    scores, places = answer.logits.float().sigmoid().flatten(1).topk(min(most, answer.logits[0].numel()), dim=1)
    query, label = places.div(answer.logits.shape[-1], rounding_mode="floor"), places % answer.logits.shape[-1]
    boxes = cxcywh_to_xyxy(answer.boxes.float()).gather(1, query.unsqueeze(-1).expand(-1, -1, 4))
    boxes = boxes * torch.tensor([[w, h, w, h] for w, h in sizes], device=boxes.device).unsqueeze(1)
    return [Detections(*parts) for parts in zip(scores.cpu(), label.cpu(), boxes.cpu())]
