"""Tensors that are divided over processes (FSDP): `DTensor`, and the whole tensors they stand for.

`groupdetr.engine.sharding` divides the parameters of a model.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

# At run time it is imported where it is used, because that takes a second.
if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_part(x: object) -> TypeGuard[DTensor]:
    """True for a tensor of which this process has a part only."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def is_sharded(model: nn.Module) -> bool:
    """True if the parameters of a model are divided over processes."""
    return any(is_part(parameter) for parameter in model.parameters())


def local_part(x: Tensor) -> Tensor:
    """Return the part of a tensor that this process has. It shares memory with the tensor."""
    return x.to_local() if is_part(x) else x


def whole_tensor(x: Tensor) -> Tensor:
    """Return a tensor with the parts of all processes, which all have to call this."""
    return x.full_tensor() if is_part(x) else x


@torch.no_grad()
def gather(content: Any, keep: bool, gathered: dict[int, Tensor | None] | None = None) -> Any:
    """Return ``content`` with whole tensors on the host in place of those that are sharded.

    ``content`` is a tensor, or dicts and lists of them with other values, which stay as they are. A
    tensor that is in it several times is gathered once. All processes call this with the same
    content. Those without ``keep`` get None in place of the tensors.
    """
    gathered = {} if gathered is None else gathered
    if isinstance(content, dict):
        return {key: gather(value, keep, gathered) for key, value in content.items()}
    if isinstance(content, list):
        return [gather(value, keep, gathered) for value in content]
    if not is_part(content):
        return content
    if id(content) not in gathered:
        whole = content.full_tensor()
        # A copy, because the memory of ``whole`` may end with padding.
        gathered[id(content)] = whole.to("cpu", copy=True) if keep else None
    return gathered[id(content)]


def divided_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """Return ``whole`` as ``parameter`` is: sharded over the processes, or in its memory format.

    All processes have the whole tensor, so nothing is exchanged.
    """
    if not is_part(parameter):
        return torch.empty_like(parameter, requires_grad=False).copy_(whole)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = parameter.device_mesh, parameter.placements
    whole = whole.to(parameter.device).contiguous()
    part = distribute_tensor(whole, mesh, placements, src_data_rank=None)
    # A copy, because the part would keep the memory of the whole tensor.
    return part.clone()
