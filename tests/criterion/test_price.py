"""What matching and comparing cost a step, counted: operations, copies between devices, memory kept for backward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from groupdetr.structures.outputs import Outputs

from .samples import criterion, outputs, targets

CRITERION = criterion()


class Operations(TorchDispatchMode):
    """Counts them, views too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(outputs: Outputs, *counts: int) -> int:
    """From predictions to losses, and from the gradients of the losses to those of the predictions."""
    wanted, mean = targets(*counts), torch.tensor(1.0)
    leaves = [x for layer in outputs.layers for x in (layer.logits, layer.boxes)]
    with Operations() as used:
        losses = list(CRITERION(outputs, wanted, mean).values())
    ones = [torch.ones(()) for _ in losses]
    with used:
        torch.autograd.grad(losses, leaves, ones)
    return used.count


def test_a_plain_detector_needs_two_hundred_operations_whatever_k_and_the_objects() -> None:
    counts = {
        operations(outputs(groups), *objects)
        for groups in (1, 11)
        for objects in ((7, 7), (60, 0), (1, 130))
    }
    assert len(counts) == 1, counts
    assert counts.pop() <= 200


@pytest.mark.parametrize("layers", [3, 7])
def test_a_layer_adds_two_views_of_a_gradient(layers: int) -> None:
    assert operations(outputs(2, layers), 3, 3) == operations(outputs(2, 6), 3, 3) + 2 * (
        layers - 6
    )


def test_proposals_and_denoising_are_compared_in_the_same_way_and_as_fast_for_any_k() -> None:
    one, many = (operations(outputs(groups, counts=(3, 5)), 3, 5) for groups in (1, 11))
    assert one == many <= 345


class Calls(TorchFunctionMode):
    """Counts what may wait for the device, or copy from or to it: methods of tensors, and tensors made of numbers."""

    WAIT = (
        "item",
        "tolist",
        "cpu",
        "nonzero",
        "__bool__",
        "__float__",
        "__int__",
        "tensor",
        "new_tensor",
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        moves = name == "to" and any(isinstance(x, torch.device) for x in args)
        if moves or name in self.WAIT:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("counts", [None, (3, 5)], ids=["plain", "proposals and denoising"])
def test_costs_are_copied_to_the_host_once_and_pairs_back_once(
    counts: Sequence[int] | None,
) -> None:
    outs, wanted, mean = outputs(2, counts=counts), targets(3, 5), torch.tensor(8.0)
    with Calls() as calls:
        CRITERION(outs, wanted, mean)
    assert calls.seen == {"cpu": 1, "to": 1}


def kept(*counts: int) -> tuple[int, int]:
    """Bytes kept for backward, each storage once, and those of all logits."""
    outs, storages = outputs(11, queries=300), {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        CRITERION(outs, targets(*counts))
    return sum(storages.values()), sum(layer.logits.nbytes for layer in outs.layers)


def test_backward_needs_one_tensor_of_the_logits_size_and_little_more_in_crowds() -> None:
    few, many, more = (kept(n, n) for n in (7, 50, 100))
    assert few[0] <= 1.02 * few[1]
    assert more[0] <= 1.15 * more[1]
    assert (more[0] - many[0]) / 50 == pytest.approx((many[0] - few[0]) / 43, rel=0.05)  # linear
