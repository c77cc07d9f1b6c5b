"""Boxes as pure functions of tensors: two forms, their overlap, and the inverse of the sigmoid that draws them."""

from __future__ import annotations

import torch
from torch import Tensor


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


def generalized_iou(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """GIoU of corner boxes a [...,4] and b [...,4], which broadcast -> [...] in [-1,1] (Rezatofighi et al. 2019).

    ``generalized_iou(a[..., :, None, :], b[..., None, :, :])`` compares all with all. ``eps`` is added to both
    denominators; without it the boxes need an area in at least one of a and b.
    """
    ax0, ay0, ax1, ay1 = a.unbind(-1)
    bx0, by0, bx1, by1 = b.unbind(-1)
    width = (torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)).clamp(min=0)
    height = (torch.minimum(ay1, by1) - torch.maximum(ay0, by0)).clamp(min=0)
    intersection = width * height
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - intersection
    hull_width = torch.maximum(ax1, bx1) - torch.minimum(ax0, bx0)
    hull = hull_width * (torch.maximum(ay1, by1) - torch.minimum(ay0, by0))
    return intersection / (union + eps) - (hull - union) / (hull + eps)
