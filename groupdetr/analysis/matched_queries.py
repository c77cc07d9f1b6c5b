"""Fig. 3: the K queries, one of each group, that an object is matched to, with their boxes and reference points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.data.batch import Pictures, collate
from groupdetr.detector import DetectionTransformer
from groupdetr.engine.evaluate import evaluating, running
from groupdetr.ops.boxes import cxcywh_to_xyxy
from groupdetr.structures import Objects


@dataclass
class MatchedQueries:
    """The T objects of one picture, in pixels of the original."""

    boxes: np.ndarray  # [T,4] of the objects: x0, y0, x1, y1
    said: np.ndarray  # [T,K,4] the box, or that around the mask, of the matched query of each group; nan without one
    points: np.ndarray  # [T,K,2] where that query looks, x, y; the middle of what it predicts if it looks everywhere


@torch.no_grad()
def matched_queries(
    model: DetectionTransformer, criterion: SetCriterion, pictures: Pictures, index: int
) -> MatchedQueries:
    """The last layer's assignment of picture ``index``, all groups running side by side."""
    batch = collate([pictures[index]])
    device = next(model.parameters()).device
    target = batch.targets[0].to(device)
    with evaluating(model), running(model, None):
        outputs = model(batch.images(device))
        stages = outputs.stages()[0]
        assignment = criterion.assign(stages, Objects.from_targets([target]))
    record = pictures.records[index]
    size = torch.tensor([record.width, record.height], device=device)
    groups = stages.predictions.logits.shape[2]
    said = torch.full((len(target), groups, 4), torch.nan, device=device)
    points = torch.full((len(target), groups, 2), torch.nan, device=device)
    last, predictions = (assignment.target[-1], assignment.group[-1]), stages.predictions
    matched = predictions.of(*(assignment.gather(x)[-1:] for x in (predictions.logits, predictions.place)))  # [1,M,.]
    where = matched.bounds()[0]
    where = where.masked_fill((where[:, 2:] == 0).any(1, keepdim=True), torch.nan)  # an empty mask is nowhere
    said[last] = cxcywh_to_xyxy(where) * size.repeat(2)
    reference = outputs.queries.reference.expand(len(stages.names), -1, -1, -1, -1)
    points[last] = torch.cat([assignment.gather(reference)[-1], where], -1)[:, :2] * size
    boxes = cxcywh_to_xyxy(target.boxes) * size.repeat(2)
    return MatchedQueries(boxes.cpu().numpy(), said.cpu().numpy(), points.cpu().numpy())
