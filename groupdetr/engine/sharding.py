"""Fully sharded data parallel (FSDP): every process keeps a part of each parameter.

Gradients, the moments of the optimizer and the moving average are divided in the same way. A block
of the backbone or a layer of the encoder is a unit: its parameters are gathered from all processes
before it is computed, forward and backward, and freed after it. All other parameters form one more
unit, which is gathered for the whole forward pass: heads, queries and decoder share parameters, and
``--group-chunk`` computes gradients of them inside of the forward pass.

The units are those of PyTorch's `fully_shard`. A sharded parameter is a `DTensor`, and its name and
its shape are those of the whole parameter.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.group_chunks import ChunkedModelWithLoss, ModelWithLoss

# At run time it is imported where it is used, because that takes a second.
if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

LISTS = (nn.ModuleList, nn.Sequential)


def create_mesh(device: torch.device, num_processes: int) -> DeviceMesh:
    """Return all processes in one row. Parameters are divided over them, and go to ``device``."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (num_processes,))


def shard(network: ModelWithLoss | ChunkedModelWithLoss, mesh: DeviceMesh) -> None:
    """Divide all parameters of a network over the processes of ``mesh``, in place.

    The parameters must be equal in all processes. They are replaced, so an optimizer is created
    afterwards. The network is called as before, and its model by `ModelWithLoss.predict`. Units are
    moved to the device of the mesh one after the other, so it never holds the whole model.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # Blocks may return views, and no module changes the output of another one in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    # `fully_shard` has only contiguous parameters; backbones have channels last.
    network.to(memory_format=torch.contiguous_format)
    for block in find_blocks(network.model):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # The root frees its parameters, too, after the forward pass. Otherwise an evaluation would
    # leave them gathered, and the next step would not see what the optimizer has changed.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(network, "predict")


def find_blocks(model: DetectionTransformer) -> list[nn.Module]:
    """Return the blocks of the backbone and the layers of the encoder, in the model's order.

    They are the elements of lists in which all modules have one class and parts of their own. If a
    stage has a list of blocks, the blocks count, and not the stage. A block that shares a parameter
    with another module is left out, because one unit must own the parameter.
    """
    uses = _uses(model)
    blocks = []
    for part in (model.backbone, model.encoder):
        for block in _repeated_blocks(part):
            own_uses = _uses(block)
            if all(uses[parameter] == number for parameter, number in own_uses.items()):
                blocks.append(block)
    return blocks


def _uses(module: nn.Module) -> Counter[int]:
    """Return how often each parameter is in a module, by its id."""
    return Counter(id(x) for _, x in module.named_parameters(remove_duplicate=False))


def _repeated_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the innermost repeated blocks of a module."""
    children = list(module.children())
    inner = [block for child in children for block in _repeated_blocks(child)]
    if inner:
        yield from inner
        return
    has_one_class = isinstance(module, LISTS) and len({type(child) for child in children}) == 1
    have_parts = all(list(child.children()) for child in children)
    if has_one_class and have_parts and not isinstance(children[0], LISTS):
        yield from children
