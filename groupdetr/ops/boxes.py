"""Boxes as pure functions of tensors: two forms, their overlap, and the inverse of the sigmoid that draws them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre and size [...,4] to corners [...,4]."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Corners [...,4] to centre and size [...,4]."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """log(x / (1 - x)) of x in [0,1], both clamped at ``eps``.

    ``eps`` is part of a detector's inference function (1e-5 in Conditional DETR's code, 1e-3 in DAB-DETR's): with
    another one, published weights drift on small and on edge boxes.
    """
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def giou_distance(size_a: Tensor, size_b: Tensor, distances: Tensor, eps: float = 0.0) -> Tensor:
    """1 - GIoU of boxes a and b, in [0,2] (Rezatofighi et al. 2019): [...].

    From their sizes [2,...], which are not negative, and the distances of their centres and of their sizes [4,...].
    On either axis, boxes of mean size m overlap by m - d and span m + d, where d is half the difference of their sizes,
    or the distance of their centres if that is more. Nothing cancels, as it would between corners. ``eps`` is added to
    both denominators; without it the boxes need an area in at least one of a and b.
    """
    centres, sizes = distances.split(2)
    mean, beyond = torch.lerp(size_a, size_b, 0.5), positive(torch.sub(centres, sizes, alpha=0.5))
    apart = torch.add(beyond, sizes, alpha=0.5)
    intersection, hull = area(positive(mean - apart)), area(mean + apart) + eps
    union = (area(size_a) + (area(size_b) + eps)).sub_(intersection)
    return 2 - (intersection / union).add_(union / hull)


def area(size: Tensor) -> Tensor:
    """Width times height: [2,...] -> [...]."""
    width, height = size.unbind()
    return width * height


def positive(x: Tensor) -> Tensor:
    """Zero where x is negative: relu, which detaches and keeps its result where this keeps x."""
    return F.threshold(x, 0.0, 0.0)
