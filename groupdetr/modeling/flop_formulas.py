"""The floating-point operations of oneDNN's functions, for `torch.utils.flop_counter`.

Whoever counts operations imports this module. It is in no other module, because the counter imports
Triton, which takes a tenth of the time of importing PyTorch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from groupdetr.modeling.linear import ONEDNN_AVAILABLE

if ONEDNN_AVAILABLE:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def linear_flops(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
        """Return the operations of one linear layer."""
        return 2 * x.numel() * weight[0]

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise)
    def convolution_flops(_x: torch.Size, *others: Any, out_shape: torch.Size, **_: object) -> int:
        """Return the operations of one convolution.

        The arguments are those of both forms of the operation, with sizes instead of tensors.
        """
        is_sum = isinstance(others[2], torch.Size)  # then the map that is added comes first
        weight = others[1] if is_sum else others[0]
        return 2 * math.prod(out_shape) * math.prod(weight[1:])
