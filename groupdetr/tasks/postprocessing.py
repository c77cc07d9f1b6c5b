"""Post-processing that all tasks share: the selection of the best (query, class) pairs."""

from __future__ import annotations

from torch import Tensor


def best_pairs(scores: Tensor, num_detections: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the (query, class) pairs with the highest scores of each image.

    They are sorted by decreasing score. ``scores`` are [B,N,classes]. Returns scores, query indices
    and class indices [B,D].
    """
    num_classes = scores.shape[-1]
    num_pairs = scores[0].numel()
    best, pair = scores.flatten(1).topk(min(num_detections, num_pairs), dim=1)
    query = pair.div(num_classes, rounding_mode="floor")
    return best, query, pair % num_classes
