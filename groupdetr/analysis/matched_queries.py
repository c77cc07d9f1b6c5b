"""Fig. 3: the K queries that are matched to an object, one in each group.

The figure shows their predicted boxes and reference points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.data.batch import collate
from groupdetr.data.dataset import DetectionDataset
from groupdetr.engine.inference import eval_mode, use_group
from groupdetr.engine.task import Batch
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.ops.boxes import cxcywh_to_xyxy
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import TargetBatch


@dataclass
class MatchedQueries:
    """The T objects of one image and their matched queries, in pixels of the original image."""

    boxes: np.ndarray  # [T,4] of the objects: x0, y0, x1, y1
    # [T,K,4] predicted boxes, or boxes around the predicted masks, of the matched query of each
    # group; nan if a group has none
    predicted_boxes: np.ndarray
    # [T,K,2] x, y of the reference points of these queries; without reference points, the centres
    # of the predicted boxes
    points: np.ndarray


@dataclass
class LastLayerMatches:
    """The M matched queries of the last decoder layer, for one image or scene."""

    target: Tensor  # [M] index of the object
    group: Tensor  # [M] index of the group
    predictions: Predictions  # [1,M,.]
    reference: Tensor  # [1,M,R] reference points or boxes; R is 0 if queries have none
    num_groups: int  # K

    def by_object(self, values: Tensor, num_objects: int) -> np.ndarray:
        """Return values [1,M,C] by object and group, [T,K,C]; nan where a group has no match."""
        shape = (num_objects, self.num_groups, values.shape[-1])
        sorted_values = values.new_full(shape, torch.nan)
        sorted_values[self.target, self.group] = values[0]
        return sorted_values.cpu().numpy()


@torch.no_grad()
def last_layer_matches(
    model: DetectionTransformer, criterion: SetCriterion, batch: Batch
) -> LastLayerMatches:
    """Run all groups on a batch of one image, and return the matches of the last decoder layer."""
    device = next(model.parameters()).device
    targets = TargetBatch.from_targets([target.to(device) for target in batch.targets])
    with eval_mode(model), use_group(model, None):
        outputs = model(batch.images(device))
        assert outputs.queries is not None
        supervised = outputs.supervised()[0]
        assignment = criterion.assign(supervised, targets)

    # `gather` takes [L,B,K,N,.], so the reference is repeated for every layer.
    predictions = supervised.predictions
    reference = outputs.queries.reference.expand(len(supervised.names), -1, -1, -1, -1)
    return LastLayerMatches(
        target=assignment.target[-1],
        group=assignment.group[-1],
        predictions=predictions.map_queries(lambda x: assignment.gather(x)[-1:]),
        reference=assignment.gather(reference)[-1:],
        num_groups=predictions.logits.shape[2],
    )


def matched_queries(
    model: DetectionTransformer, criterion: SetCriterion, images: DetectionDataset, index: int
) -> MatchedQueries:
    """Return the matched queries of image ``index``."""
    batch = collate([images[index]])
    target_boxes = batch.targets[0].boxes
    num_objects = len(target_boxes)
    matches = last_layer_matches(model, criterion, batch)

    # Boxes around masks are all zeros for empty masks, which have no box.
    boxes = matches.predictions.to_boxes()
    empty = (boxes[..., 2:] == 0).any(-1, keepdim=True)
    boxes = boxes.masked_fill(empty, torch.nan)

    # The first two columns: of the reference if there is one, otherwise of the predicted box.
    points = torch.cat([matches.reference, boxes], -1)[..., :2]

    record = images.records[index]
    size = matches.reference.new_tensor([record.width, record.height])
    corners_size = size.repeat(2)
    target_corners = cxcywh_to_xyxy(target_boxes) * corners_size.cpu()
    predicted_corners = cxcywh_to_xyxy(boxes) * corners_size
    return MatchedQueries(
        boxes=target_corners.numpy(),
        predicted_boxes=matches.by_object(predicted_corners, num_objects),
        points=matches.by_object(points * size, num_objects),
    )
