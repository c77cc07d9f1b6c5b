"""Fig. 3: the K queries, one of each group, that an object is matched to, with their boxes and reference points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.data.batch import Pictures, collate
from groupdetr.engine.inference import evaluating, running
from groupdetr.engine.task import Pieces
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.ops.boxes import cxcywh_to_xyxy
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import Objects


@dataclass
class MatchedQueries:
    """The T objects of one picture, in pixels of the original."""

    boxes: np.ndarray  # [T,4] of the objects: x0, y0, x1, y1
    said: np.ndarray  # [T,K,4] the box, or that around the mask, of the matched query of each group; nan without one
    points: (
        np.ndarray
    )  # [T,K,2] where that query looks, x, y; the middle of what it predicts if it looks everywhere


@dataclass
class Matched:
    """What the last layer says, of the M queries that are matched to an object of one picture or scene."""

    target: Tensor  # [M] the object, one of T
    group: Tensor  # [M] of K
    said: Predictions  # [1,M,.]
    reference: Tensor  # [1,M,R] where the query looks, empty if everywhere
    groups: int  # K

    def by_object(self, values: Tensor, objects: int) -> np.ndarray:
        """Values [1,M,C] as [T,K,C], nan where an object has no query of a group."""
        dealt = values.new_full((objects, self.groups, values.shape[-1]), torch.nan)
        dealt[self.target, self.group] = values[0]
        return dealt.cpu().numpy()


@torch.no_grad()
def matched(model: DetectionTransformer, criterion: SetCriterion, batch: Pieces) -> Matched:
    """In a batch of one, all groups running side by side."""
    device = next(model.parameters()).device
    with evaluating(model), running(model, None):
        outputs = model(batch.images(device))
        stages = outputs.stages()[0]
        assignment = criterion.assign(
            stages, Objects.from_targets([target.to(device) for target in batch.targets])
        )
    predictions = stages.predictions
    reference = outputs.queries.reference.expand(len(stages.names), -1, -1, -1, -1)
    said = predictions.of(
        *(assignment.gather(x)[-1:] for x in (predictions.logits, predictions.place))
    )
    groups = predictions.logits.shape[2]
    last = (assignment.target[-1], assignment.group[-1])
    return Matched(*last, said, assignment.gather(reference)[-1:], groups)


def matched_queries(
    model: DetectionTransformer, criterion: SetCriterion, pictures: Pictures, index: int
) -> MatchedQueries:
    """The last layer's assignment of picture ``index``."""
    batch, record = collate([pictures[index]]), pictures.records[index]
    found, objects = matched(model, criterion, batch), batch.targets[0].boxes
    size = found.reference.new_tensor([record.width, record.height])
    where = found.said.bounds()
    where = where.masked_fill(
        (where[..., 2:] == 0).any(-1, keepdim=True), torch.nan
    )  # an empty mask is nowhere
    points = torch.cat([found.reference, where], -1)[..., :2] * size
    return MatchedQueries(
        boxes=(cxcywh_to_xyxy(objects) * size.cpu().repeat(2)).numpy(),
        said=found.by_object(cxcywh_to_xyxy(where) * size.repeat(2), len(objects)),
        points=found.by_object(points, len(objects)),
    )
