"""A device that does not exist, on which the host waits that a GPU would need are counted.

The tensors are on the CPU, but say that they are on a GPU. Whatever the host would have to wait for
on a GPU is written down: reading a value, an operation whose result has as many elements as the
values say, a copy that is not asynchronous, and a tensor that is made of numbers of Python. These
are the operations that ``torch.cuda.set_sync_debug_mode`` reports.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._pytree import tree_leaves

import groupdetr
from groupdetr.modeling.attention.deformable_attention import in_pytorch, use_backend

PRETENDED = torch.device("cuda")
HOST = torch.device("cpu")
ON_DEVICE, PINNED = "is_on_pretended_device", "is_pretended_to_be_pinned"
SOURCE = str(Path(groupdetr.__file__).parent)
TRANSFER = str(Path(SOURCE, "ops", "transfer.py"))  # it copies for others

# These return values of a tensor to Python, or their results have as many elements as values say.
WAITS = {
    "item",
    "tolist",
    "numpy",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__contains__",
    "is_nonzero",
    "equal",
    "allclose",
    "nonzero",
    "argwhere",
    "masked_select",
    "unique",
    "bincount",
    # These check their result.
    "inv",
    "solve",
    "cholesky",
}
# These make a tensor of numbers of Python. On a GPU, this is a copy that the host waits for.
FROM_NUMBERS = {"tensor", "as_tensor", "new_tensor", "asarray"}


class PretendedEvent:
    """In place of `torch.cuda.Event`.

    The host waits for an event unless it has waited for something else since the event.
    """

    def __init__(self, device: PretendedDevice) -> None:
        self.device = device

    def record(self, _stream: object = None) -> None:
        self.waits_before = self.device.num_waits

    def synchronize(self) -> None:
        if self.device.num_waits == self.waits_before:
            self.device.wait("event")


class HostGenerator(torch.Generator):
    """In place of `torch.Generator`, on whatever device it should be.

    It is a class, because modules that are imported meanwhile have it in their annotations.
    """

    def __new__(cls, *_: object) -> HostGenerator:
        return super().__new__(cls)


@contextmanager
def pretended_device() -> Iterator[PretendedDevice]:
    """Count the host waits of everything that runs in this context."""

    def group(tensors: Any, **_: object) -> Any:
        return {(PRETENDED, torch.float32): (tensors, None)}

    device = PretendedDevice()
    # What asks for the device by other ways than a function of tensors
    with (
        use_backend(in_pytorch),
        patch.object(torch, "Generator", HostGenerator),
        patch.object(torch.cuda, "Event", lambda: PretendedEvent(device)),
        patch.object(torch.cuda, "current_stream", lambda _: None),
        patch.object(clip_grad, "_group_tensors_by_device_and_dtype", group),
        # Marks are lost in the backward pass, so a layer that is run again has other devices.
        patch.dict(checkpoint._allowed_determinism_checks_to_fns, default=lambda _: None),
        device,
    ):
        yield device


class PretendedDevice(TorchFunctionMode):
    """The mode of `pretended_device`.

    ``waits`` has the operation and the line of this library for each host wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.num_waits = 0  # also those that were removed from `waits`
        self.in_backward = False

    def put_on_device(self, module: nn.Module) -> None:
        """Put the parameters and buffers of a module on the device."""
        for tensor in (*module.parameters(), *module.buffers()):
            mark(tensor)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = name_of(func)
        if name == "device":
            return PRETENDED if is_marked(args[0]) else func(*args, **kwargs)
        if name == "is_cuda":
            return is_marked(args[0])
        if name == "is_pinned":
            return is_marked(args[0], PINNED)
        if name == "pin_memory":
            pinned = args[0].clone()
            mark(pinned, PINNED)
            return pinned
        if name == "backward":
            # Marks are lost in the backward pass, so every value that is read there counts.
            self.in_backward = True
            with self:
                run_backward(args[0], torch.ones_like(args[0]))
            self.in_backward = False
            return None

        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_device = any(map(is_marked, tensors))
        device = device_argument(args, kwargs)
        self.count(name, args, kwargs, on_device, device)
        if device is not None and device.type == PRETENDED.type:
            args = tuple(HOST if is_device(x) else x for x in args)
            kwargs = {key: HOST if is_device(x) else x for key, x in kwargs.items()}
            on_device = True
        elif device is not None or name == "cpu":
            on_device = False
        result = func(*args, **kwargs)
        if name in ("to", "cpu") and isinstance(result, Tensor) and on_device != is_marked(args[0]):
            result = result.clone()  # A copy on another device is another tensor.
        if on_device:
            for x in tree_leaves(result):
                if isinstance(x, Tensor):
                    mark(x)
        return result

    def count(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        on_device: bool,
        device: torch.device | None,
    ) -> None:
        """Write down what the host waits for."""
        to_device = device is not None and device.type == PRETENDED.type
        non_blocking = kwargs.get("non_blocking", name == "to" and True in args[2:])
        if name in WAITS and (on_device or self.in_backward):
            self.wait(name)
        elif name in FROM_NUMBERS and (to_device or (name == "new_tensor" and on_device)):
            if not any(isinstance(x, Tensor) for x in args[-1:]):
                self.wait(f"{name} of numbers")
        elif name == "cpu" and on_device:
            self.wait("cpu")
        elif name == "to" and device is not None and to_device != on_device:
            if not non_blocking:
                self.wait(f"to({device.type})")
            elif to_device and not is_marked(args[0], PINNED):
                self.wait("to(cuda) of memory that is not pinned")
        elif name == "copy_" and is_marked(args[0]) != is_marked(args[1]) and not non_blocking:
            self.wait("copy_")
        elif name in ("__getitem__", "__setitem__") and is_marked(args[0]):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            for x in index:
                if isinstance(x, list):
                    self.wait(f"{name} with a list")
                elif isinstance(x, Tensor) and not is_marked(x) and x.ndim:
                    self.wait(f"{name} with an index on the host")
                elif isinstance(x, Tensor) and x.dtype == torch.bool:
                    self.wait(f"{name} with a mask")
        elif name == "where" and on_device and len(args) == 1:
            self.wait("where without values")
        elif name == "repeat_interleave" and on_device and "output_size" not in kwargs:
            repeats = kwargs["repeats"] if "repeats" in kwargs else args[-1]
            if isinstance(repeats, Tensor):
                self.wait("repeat_interleave without output_size")

    def wait(self, operation: str) -> None:
        """Write down an operation, and the line of this library that it is in."""
        stack = traceback.extract_stack()
        frames = [f for f in stack if f.filename.startswith(SOURCE) and f.filename != TRANSFER]
        where = "elsewhere"
        if frames:
            last = frames[-1]
            where = f"{Path(last.filename).relative_to(SOURCE)}:{last.lineno}"
        self.waits.append(f"{operation} in {where}")
        self.num_waits += 1


def run_backward(loss: Tensor, gradient: Tensor) -> None:
    """Run what `Tensor.backward` runs.

    That function itself would be passed to the mode again, and again.
    """
    engine = torch.autograd.Variable._execution_engine
    engine.run_backward((loss,), (gradient,), False, False, (), True, accumulate_grad=True)


def mark(tensor: Tensor, name: str = ON_DEVICE) -> None:
    """Let a tensor say that it is on the device, or pinned."""
    tensor.__dict__[name] = True


def is_marked(x: object, name: str = ON_DEVICE) -> bool:
    return isinstance(x, Tensor) and name in x.__dict__


def is_device(x: object) -> bool:
    return (isinstance(x, torch.device) and x.type == PRETENDED.type) or (
        isinstance(x, str) and x == PRETENDED.type
    )


def name_of(func: Callable[..., Any]) -> str:
    """Return the name of a function, or of the attribute that it reads."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "")
    return name


def device_argument(args: Iterable[Any], kwargs: dict[str, Any]) -> torch.device | None:
    """Return the device that a function is called with, None without one."""
    for x in (*args, *kwargs.values()):
        if isinstance(x, torch.device):
            return x
        if isinstance(x, str) and x in ("cpu", "cuda"):
            return torch.device(x)
    return None
