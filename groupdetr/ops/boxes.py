"""2D boxes: two formats, boxes relative to other boxes, generalized IoU, the inverse sigmoid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert centre and size [...,4] to corners [...,4]."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert corners [...,4] to centre and size [...,4]."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """Return log(x / (1 - x)) of x in [0,1], with x and 1 - x clamped to at least ``eps``.

    ``eps`` is a part of a detector's inference: 1e-5 in Conditional DETR's code, 1e-3 in
    DAB-DETR's. With another value, published weights predict slightly different boxes for objects
    that are small or at the edge of the image.
    """
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def move_boxes(boxes: Tensor, offsets: Tensor) -> Tensor:
    """Move and scale boxes (cx, cy, w, h) by offsets relative to their sizes: [...,4] -> [...,4].

    The centre moves by the first two offsets, in widths and heights of the box. Width and height
    are multiplied by the exponential of the last two (Faster R-CNN; ``bbox_reparam`` in LW-DETR's
    code). The result is computed in at least 32 bits, because the exponential is not bounded. A box
    may be partly or completely outside of the image.
    """
    # `torch.promote_types` would become a node of exported graphs.
    dtype = torch.float64 if torch.float64 in (boxes.dtype, offsets.dtype) else torch.float32
    boxes, offsets = boxes.to(dtype), offsets.to(dtype)
    centre, size = boxes[..., :2], boxes[..., 2:]
    centre_offset, log_scale = offsets[..., :2], offsets[..., 2:]
    return torch.cat([centre + centre_offset * size, size * log_scale.exp()], dim=-1)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU of boxes a and b [4,...] (cx, cy, w, h), which broadcast: [...].

    It is zero for two boxes without an area.
    """
    distance = torch.maximum((a[:2] - b[:2]).abs(), (a[2:] - b[2:]).abs() / 2)
    # The overlap on an axis is the mean of the two sizes minus the distance, see `giou_distance`.
    overlap = positive((a[2:] + b[2:]) / 2 - distance)
    intersection = area(overlap)
    union = area(a[2:]) + area(b[2:]) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def giou_distance(size_a: Tensor, size_b: Tensor, distances: Tensor, eps: float = 0.0) -> Tensor:
    """Return 1 - GIoU of boxes a and b, in [0,2] (Rezatofighi et al. 2019): [...].

    ``size_a`` and ``size_b`` [2,...] are widths and heights, which are not negative.
    ``distances`` [4,...] are |a - b| of cx, cy, w and h. ``eps`` is added to the areas of union
    and hull. Without it, at least one of a and b needs an area.

    Corners are not computed: differences of corners would cancel, and small boxes would lose
    digits. On either axis, let m be the mean of the two sizes, and let d be half the difference of
    the sizes or the distance of the centres, whichever is larger. Then the overlap is m - d, and
    the hull has the length m + d.
    """
    centre_distance, size_difference = distances.split(2)
    mean_size = torch.lerp(size_a, size_b, 0.5)
    # max(centre_distance, size_difference / 2) as positive(centre_distance - size_difference / 2)
    # + size_difference / 2. The results stay on the first axis: x, y.
    excess = positive(torch.sub(centre_distance, size_difference, alpha=0.5))
    distance = torch.add(excess, size_difference, alpha=0.5)
    intersection = area(positive(mean_size - distance))
    hull = area(mean_size + distance) + eps
    union = (area(size_a) + (area(size_b) + eps)).sub_(intersection)
    # 1 - GIoU = 1 - (intersection / union - (hull - union) / hull)
    return 2 - (intersection / union).add_(union / hull)


def giou_distance_in_place(
    size_a: Tensor, size_b: Tensor, distances: Tensor, eps: float = 0.0
) -> Tensor:
    """Return what `giou_distance` returns, for all pairs of boxes, and without a gradient.

    The results of most steps overwrite those of earlier ones. The arguments are not changed.
    """
    centre_distance, size_difference = distances.split(2)
    distance = (size_difference * 0.5).clamp_(min=centre_distance)
    mean_size = size_a * 0.5 + size_b * 0.5
    overlap = (mean_size - distance).clamp_(min=0)
    hull = area(mean_size.add_(distance))
    if eps:
        hull.add_(eps)
    areas = area(size_a) + (area(size_b) + eps)
    union = torch.addcmul(areas, *overlap.unbind(), value=-1)
    # 1 - GIoU = 2 - intersection / union - union / hull, and intersection = areas - union
    three = areas.new_full((), 3.0)
    return torch.addcdiv(three, areas, union, value=-1).addcdiv_(union, hull, value=-1)


def area(size: Tensor) -> Tensor:
    """Return width times height: [2,...] -> [...]."""
    width, height = size.unbind()
    return width * height


def positive(x: Tensor) -> Tensor:
    """Return max(x, 0).

    It keeps x for its backward pass. Relu would detach its result and keep that instead.
    """
    return F.threshold(x, 0.0, 0.0)
