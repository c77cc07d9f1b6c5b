"""The price of a criterion step: operations, copies between devices, memory kept for backward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from groupdetr.criterion import classification
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.step_objects import StepObjects

from .samples import criterion, outputs, targets

CRITERION = criterion()
# As on a GPU, where the number of operations counts. A CPU computes the costs of many objects in
# blocks, and the losses of many logits in parts.
CRITERION.matcher.computes_in_blocks = False


@pytest.fixture
def losses_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = classification.MAX_LOGITS_ON_DEVICE
    monkeypatch.setattr(classification, "MAX_LOGITS_AT_ONCE", limit)


class OperationCounter(TorchDispatchMode):
    """Counts operations, views included."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def count_operations(outputs: Outputs, *counts: int) -> int:
    """Operations from predictions to losses, and back to the gradients of the predictions."""
    annotated, step = targets(*counts), StepObjects(counts)
    leaves = [x for layer in outputs.layers for x in (layer.logits, layer.boxes)]
    with OperationCounter() as counter:
        losses = list(CRITERION(outputs, annotated, step).values())
    ones = [torch.ones(()) for _ in losses]
    with counter:
        torch.autograd.grad(losses, leaves, ones)
    return counter.count


@pytest.mark.usefixtures("losses_as_on_a_gpu")
def test_a_plain_detector_needs_two_hundred_operations_for_any_k_and_number_of_objects() -> None:
    operations = {
        count_operations(outputs(groups), *counts)
        for groups in (1, 11)
        for counts in ((7, 7), (60, 0), (1, 130))
    }
    assert len(operations) == 1, operations
    assert operations.pop() <= 202


@pytest.mark.usefixtures("losses_as_on_a_gpu")
@pytest.mark.parametrize("layers", [3, 7])
def test_a_layer_adds_two_views_of_a_gradient(layers: int) -> None:
    six_layers = count_operations(outputs(2, 6), 3, 3)
    assert count_operations(outputs(2, layers), 3, 3) == six_layers + 2 * (layers - 6)


@pytest.mark.usefixtures("losses_as_on_a_gpu")
def test_proposals_and_denoising_need_as_many_operations_for_any_k() -> None:
    one = count_operations(outputs(1, counts=(3, 5)), 3, 5)
    eleven = count_operations(outputs(11, counts=(3, 5)), 3, 5)
    assert one == eleven <= 345


class CopyCounter(TorchFunctionMode):
    """Counts calls that may wait for the device, or copy to or from it.

    These are methods of tensors, and tensors made of numbers.
    """

    WAITING = (
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
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        copies = name == "to" and any(isinstance(x, torch.device) for x in args)
        if copies or name in self.WAITING:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("on_gpu", [False, True], ids=["checked", "created on a GPU"])
@pytest.mark.parametrize("counts", [None, (3, 5)], ids=["plain", "proposals and denoising"])
def test_costs_are_copied_to_the_host_once_and_pairs_back_once(
    counts: Sequence[int] | None, on_gpu: bool
) -> None:
    """Checking the values of targets needs no copy of its own, wherever they were created."""
    predicted, annotated = outputs(2, counts=counts), targets(3, 5)
    if on_gpu:
        for target in annotated:
            target.max_label = None
    with CopyCounter() as counter:
        CRITERION(predicted, annotated, StepObjects([3, 5]))
    assert counter.calls == {"cpu": 1, "to": 1}


def bytes_kept(*counts: int) -> tuple[int, int]:
    """Bytes kept for backward, each storage once, and the bytes of all logits."""
    predicted = outputs(11, queries=300)
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        CRITERION(predicted, targets(*counts))
    return sum(storages.values()), sum(layer.logits.nbytes for layer in predicted.layers)


def test_backward_needs_one_tensor_of_the_size_of_the_logits_and_little_per_object() -> None:
    seven, logits = bytes_kept(7, 7)
    fifty, _ = bytes_kept(50, 50)
    hundred, _ = bytes_kept(100, 100)
    assert seven <= 1.02 * logits
    assert hundred <= 1.15 * logits
    # The growth is linear in the number of objects.
    assert (hundred - fifty) / 50 == pytest.approx((fifty - seven) / 43, rel=0.05)
