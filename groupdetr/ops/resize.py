"""Antialiased bicubic resizing in graphs of torch.compile that serve any size.

PyTorch 2.14 cannot trace the gradient of `torch.nn.functional.interpolate` with antialiasing if the
size is not a constant. These operations are opaque to torch.compile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.library.custom_op("groupdetr::resize_antialiased", mutates_args=())
def resize_antialiased(x: Tensor, height: int, width: int) -> Tensor:
    """Return ``x`` [B,C,H,W] resized to [B,C,height,width], as `interpolate` resizes it."""
    resized = F.interpolate(
        x, size=(height, width), mode="bicubic", align_corners=False, antialias=True
    )
    return resized.contiguous()


@torch.library.custom_op("groupdetr::resize_antialiased_backward", mutates_args=())
def resize_antialiased_backward(grad: Tensor, height: int, width: int) -> Tensor:
    """Return the gradient [B,C,height,width] of the input, given that of the result."""
    gradient: Tensor = torch.ops.aten._upsample_bicubic2d_aa_backward(
        grad.contiguous(), grad.shape[2:], [*grad.shape[:2], height, width], False, None, None
    )
    return gradient.contiguous()


@resize_antialiased.register_fake
@resize_antialiased_backward.register_fake
def _empty_of_size(x: Tensor, height: int, width: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], height, width)


def _keep_size(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
    ctx.size = inputs[0].shape[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return resize_antialiased_backward(grad, *ctx.size), None, None


resize_antialiased.register_autograd(_backward, setup_context=_keep_size)
