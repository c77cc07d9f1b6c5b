"""Convolutions without gradients, computed by oneDNN on x86 CPUs.

With one thread, PyTorch calls MKL for the 1 x 1 convolutions of a batch of fewer than 16 images.
MKL uses only a part of a processor that is not made by Intel, see `modeling/linear.py`. oneDNN also
adds another map and applies a ReLU while it computes a convolution, so neither needs a pass of its
own over the map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groupdetr.modeling.linear import uses_onednn


def computed_by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Return whether `convolve` can compute this: for float32 on a CPU, without gradients.

    ``x`` [B,C,H,W] must be in the memory format ``channels_last``.
    """
    return (
        not torch.is_grad_enabled()
        and uses_onednn(x, weight)
        and not torch.compiler.is_compiling()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    conv: nn.Conv2d,
    relu: bool = False,
    plus: Tensor | None = None,
) -> Tensor:
    """Return the convolution of ``x`` [B,C,H,W], by oneDNN.

    Padding, stride, dilation and groups are those of ``conv``, and ``weight`` and ``bias`` are
    passed. A map ``plus`` of the size of the result is added, and then a ReLU is applied if
    ``relu`` is True.
    """
    activation = "relu" if relu else None
    sizes = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
    if plus is None:
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, *sizes, activation or "none", [], ""
        )
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x, plus, weight, bias, *sizes, "add", None, activation, [], ""
    )
