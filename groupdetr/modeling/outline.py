"""Networks without memory, of which only the names and shapes of tensors are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Functions in constructors of modules: those that change a tensor in place, and those of single
# elements
IN_PLACE = {
    Tensor.normal_,
    Tensor.logit_,
    Tensor.erfinv_,
    Tensor.clamp_,
    nn.init.normal_,
}
ELEMENTWISE = {
    Tensor.add,
    Tensor.sub,
    Tensor.mul,
    Tensor.div,
    Tensor.abs,
    Tensor.sqrt,
    Tensor.rsqrt,
    Tensor.sin,
    Tensor.cos,
    torch.maximum,
}


@contextmanager
def without_memory() -> Iterator[None]:
    """Create all modules inside the context on the meta device, on which tensors have no values."""
    with torch.device("meta"), _ShapesOfArithmetic():
        yield


class _ShapesOfArithmetic(TorchFunctionMode):
    """Computes the shapes of the results of some functions of tensors on the meta device.

    PyTorch computes them, too, but it imports its compiler or SymPy for that, which takes up to as
    long as the import of PyTorch. Other functions are left to PyTorch.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        _types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        is_stack = function is torch.stack and len(args) == 1 and kwargs.keys() <= {"dim"}
        values = args[0] if is_stack else (*args, *kwargs.values())
        tensors = [value for value in values if isinstance(value, Tensor)]
        if not all(tensor.is_meta for tensor in tensors):
            return function(*args, **kwargs)
        if function is torch.randn and "generator" not in kwargs:
            return torch.empty(*args, **kwargs)
        if function is torch.arange and not kwargs and all(type(value) is int for value in args):
            return torch.empty(len(range(*args)), dtype=torch.int64, device="meta")
        if function in IN_PLACE:
            return tensors[0]
        if function in ELEMENTWISE:
            shape = np.broadcast_shapes(*[tensor.shape for tensor in tensors])
            dtype = torch.result_type(*args) if len(args) == 2 else tensors[0].dtype
            # Of integers, some of these functions return integers, and others floats.
            if dtype.is_floating_point:
                return torch.empty(shape, dtype=dtype, device="meta")
        if is_stack:
            stacked_shape = list(tensors[0].shape)
            stacked_shape.insert(kwargs.get("dim", 0) % (tensors[0].ndim + 1), len(tensors))
            return torch.empty(stacked_shape, dtype=tensors[0].dtype, device="meta")
        return function(*args, **kwargs)
