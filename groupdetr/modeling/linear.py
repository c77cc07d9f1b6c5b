"""Linear layers, computed by oneDNN on x86 CPUs.

For float32, PyTorch's own linear layer calls MKL, which uses only half of a processor that is not
made by Intel. oneDNN, which is part of PyTorch and computes its convolutions, uses all of it. On an
AMD EPYC it is twice as fast, forward and backward.
"""

from __future__ import annotations

import math
import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# On other processors PyTorch is built without oneDNN, or calls it by itself.
ONEDNN_AVAILABLE = platform.machine().lower() in ("x86_64", "amd64") and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)


class Linear(nn.Linear):
    """`torch.nn.Linear` computed by `linear`: [...,in] -> [...,out]."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, by oneDNN where that is faster.

    ``x`` [...,in], ``weight`` [out,in], ``bias`` [out] -> [...,out].
    """
    if uses_onednn(x, weight):
        return _OneDNNLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def uses_onednn(x: Tensor, weight: Tensor) -> bool:
    """Return whether `linear` calls oneDNN: for float32 on a CPU.

    Under autocast PyTorch calls oneDNN by itself. Exporters and tracers must see the standard
    linear operation.
    """
    return (
        ONEDNN_AVAILABLE
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()
    )


def init_linear_weight(weight: Tensor) -> None:
    """Initialise a weight [out,in] in place as `torch.nn.Linear` does.

    It is uniform between -bound and bound, where bound is in ** -0.5.
    """
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


def init_linear_bias(bias: Tensor, in_features: int) -> None:
    """Initialise a bias [out] in place as `torch.nn.Linear` does: within the same bound."""
    bound = in_features**-0.5
    nn.init.uniform_(bias, -bound, bound)


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        x_needs_grad, weight_needs_grad, bias_needs_grad = ctx.needs_input_grad
        # The gradient of a slice of a larger tensor is not contiguous. On such a tensor oneDNN
        # takes hundreds of times as long.
        grad = grad.contiguous()
        grad_rows = grad.reshape(-1, grad.shape[-1]).contiguous()  # [M,out]
        x_rows = x.reshape(-1, x.shape[-1]).contiguous()  # [M,in]
        grad_x = multiply(grad, weight.t()) if x_needs_grad else None
        grad_weight = outer(grad_rows, x_rows) if weight_needs_grad else None
        grad_bias = grad_rows.sum(0) if bias_needs_grad else None
        return grad_x, grad_weight, grad_bias


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` [...,in] times the transpose of ``weight`` [out,in], plus ``bias`` -> [...,out]."""
    if torch.compiler.is_compiling():
        return _opaque_multiply(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def outer(a: Tensor, b: Tensor) -> Tensor:
    """[M,A] and [M,B] -> [A,B], the sum of M outer products."""
    # oneDNN is fastest if the shorter side makes the rows of the result.
    if a.shape[1] <= b.shape[1]:
        return multiply(a.t(), b.t())
    return multiply(b.t(), a.t()).t()


@torch.library.custom_op("groupdetr::multiply", mutates_args=())
def _opaque_multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`multiply` for torch.compile, which would otherwise treat the weight as a constant."""
    return multiply(x, weight, bias)


@_opaque_multiply.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))
