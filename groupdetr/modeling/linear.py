"""Linear layers, which on a CPU multiply by oneDNN.

For float32 PyTorch's own linear layer calls MKL, which leaves half of a processor unused that is not Intel's. oneDNN,
which PyTorch brings and convolves with, does not: on an AMD EPYC it is twice as fast, forward and backward.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

# elsewhere PyTorch is built without oneDNN, or calls it by itself
AVAILABLE = platform.machine().lower() in ("x86_64", "amd64") and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)


class Linear(nn.Linear):
    """[...,in] -> [...,out]: `torch.nn.Linear`, by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` [...,in], ``weight`` [out,in], ``bias`` [out] -> [...,out], as `torch.nn.functional.linear`."""
    if multiplies_by_onednn(x, weight):
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def multiplies_by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Float32 on a CPU. Under autocast PyTorch does it by itself, and compilers and exporters are to see what they
    know."""
    return (
        AVAILABLE
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        grad = (
            grad.contiguous()
        )  # a part of another tensor is not, and takes oneDNN hundreds of times as long
        rows, columns = (each.reshape(-1, each.shape[-1]).contiguous() for each in (grad, x))
        return (
            multiply(grad, weight.t()) if for_x else None,
            outer(rows, columns) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` [...,in] with ``weight`` [out,in] -> [...,out]."""
    if torch.compiler.is_compiling():
        return _opaque(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def outer(a: Tensor, b: Tensor) -> Tensor:
    """[M,A] and [M,B] -> [A,B], summed over M. oneDNN is fastest with the shorter side as its rows."""
    return multiply(a.t(), b.t()) if a.shape[1] <= b.shape[1] else multiply(b.t(), a.t()).t()


@torch.library.custom_op("groupdetr::multiply", mutates_args=())
def _opaque(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`multiply` for compilers, which would take the weight for a constant."""
    return multiply(x, weight, bias)


@_opaque.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    del bias
    return x.new_empty(*x.shape[:-1], len(weight))


if AVAILABLE:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        """What `torch.utils.flop_counter` is to count."""
        return 2 * x.numel() * weight[0]
