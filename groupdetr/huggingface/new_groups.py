"""The parameters that groups 1 to K-1 begin with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Exact copies of group 0 would get exactly its gradients and remain copies, so noise is added to
# them. Its standard deviation is a tenth of that of the parameter itself: small beside what group 0
# has learned, and large beside what a step of training changes.
RELATIVE_NOISE = 0.1

# (detector, the module that contains the part, name of the part in it) -> the part of a new group
NewGroup = Callable[[Any, Any, str], Any]


@torch.no_grad()
def perturbed(_detector: Any, container: nn.Module, name: str) -> nn.Module:
    """Return a copy of group 0 with noise of a tenth of each parameter's standard deviation."""
    part = copy.deepcopy(getattr(container, name))
    for parameter in part.parameters():
        parameter.add_(noise_like(parameter))
    return part


def noise_like(parameter: Tensor) -> Tensor:
    """Return normal noise in the scale of a parameter; it is zero where all elements are equal."""
    scale = RELATIVE_NOISE * parameter.float().std(correction=0)
    # The noise is drawn on the CPU, so that a seed means the same groups on every device.
    noise = torch.randn(parameter.shape) * scale.cpu()
    return noise.to(parameter)


@torch.no_grad()
def random(detector: Any, container: nn.Module, name: str) -> nn.Module:
    """Return a part that is initialised as transformers initialises a new model."""
    original = getattr(container, name)
    part = copy.deepcopy(original)
    # Some parameters, such as the biases of the classes, are initialised by the module that
    # contains the part. It must find the new part in its place, and leave all its other parameters
    # as they are.
    with _marked_as_initialised(container):
        setattr(container, name, part)
        try:
            for module in part.modules():
                detector._init_weights(module)
            detector._init_weights(container)
        finally:
            setattr(container, name, original)
    return part


NEW_GROUPS: dict[str, NewGroup] = {"perturbed": perturbed, "random": random}

# transformers does not initialise a tensor that has this attribute (transformers/initialization.py)
_INITIALISED = "_is_hf_initialized"


@contextmanager
def _marked_as_initialised(container: nn.Module) -> Iterator[None]:
    """Protect all parameters and buffers of the module from being initialised."""
    tensors = [*container.parameters(), *container.buffers()]
    unmarked = [tensor for tensor in tensors if not hasattr(tensor, _INITIALISED)]
    for tensor in unmarked:
        setattr(tensor, _INITIALISED, True)
    try:
        yield
    finally:
        for tensor in unmarked:
            delattr(tensor, _INITIALISED)
