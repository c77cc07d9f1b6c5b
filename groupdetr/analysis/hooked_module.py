"""A module that runs again and again with the same inputs and random numbers, with hooks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# Position or name of an argument of a forward method.
Argument = int | str


@dataclass(frozen=True)
class Call:
    """One of the calls of a module during a pass."""

    name: str  # of the module, "" for the whole model
    number: int  # how many calls of the same module came before


# Takes a call, its arguments and its keyword arguments, and may return others in place of both.
BeforeCall = Callable[
    [Call, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]] | None
]
# Takes a call and its output.
AfterCall = Callable[[Call, Any], None]


class HookedModule:
    """A module and its inputs.

    Every pass has the same random numbers, so dropout is the same in all passes. The buffers of the
    module, such as the statistics of batch norms, are the same at the beginning of all passes.
    """

    def __init__(self, module: nn.Module, inputs: Any) -> None:
        """``inputs`` are the arguments in a tuple, keyword arguments in a mapping, or one value."""
        self.module = module
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        if isinstance(inputs, Mapping):
            self.kwargs = {str(name): value for name, value in inputs.items()}
        elif isinstance(inputs, tuple):
            self.args = inputs
        else:
            self.args = (inputs,)
        self._buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}

    def run(
        self, before_call: BeforeCall | None = None, after_call: AfterCall | None = None
    ) -> Any:
        """Return the output of a pass. The functions are called for all calls of all modules."""
        self.restore_buffers()
        numbers: dict[str, int] = {}
        running: list[Call] = []  # the calls that have begun and not ended, the innermost last

        def before(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = Call(name, numbers.get(name, 0))
            numbers[name] = call.number + 1
            running.append(call)
            return before_call(call, args, kwargs) if before_call is not None else None

        def after(_name: str, _module: nn.Module, _args: Any, output: Any) -> None:
            call = running.pop()
            if after_call is not None:
                after_call(call, output)

        with ExitStack() as hooks, torch.random.fork_rng():
            for name, module in self.module.named_modules():
                hooks.enter_context(
                    module.register_forward_pre_hook(partial(before, name), with_kwargs=True)
                )
                hooks.enter_context(module.register_forward_hook(partial(after, name)))
            torch.manual_seed(0)
            return self.module(*self.args, **self.kwargs)

    def restore_buffers(self) -> None:
        """Give the buffers of the module the values that they had at first."""
        for name, buffer in self.module.named_buffers():
            if name in self._buffers:
                buffer.copy_(self._buffers[name])

    def arguments(self) -> Iterator[tuple[Argument, str, Any]]:
        """Yield key, name and value of every argument of the module."""
        try:
            names = [*inspect.signature(self.module.forward).parameters]
        except (TypeError, ValueError):
            names = []
        for position, value in enumerate(self.args):
            yield position, names[position] if position < len(names) else str(position), value
        for name, value in self.kwargs.items():
            yield name, name, value

    def describe(self, name: str) -> str:
        """Return the name of a module with its class."""
        module = self.module.get_submodule(name)
        return f"{name} ({type(module).__name__})" if name else type(module).__name__


@contextmanager
def changed_parameters(values: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Give parameters other values as long as the context lasts."""
    before = {parameter: parameter.detach().clone() for parameter in values}
    try:
        for parameter, value in values.items():
            parameter.copy_(value)
        yield
    finally:
        for parameter, value in before.items():
            parameter.copy_(value)


def float_tensors(output: Any) -> Iterator[Tensor]:
    """Yield all tensors of floating-point numbers of an output.

    They may be inside of lists, tuples, mappings and dataclasses. Other values are left out.
    """
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from float_tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from float_tensors(value)
    elif is_dataclass(output):
        for field in fields(output):
            yield from float_tensors(getattr(output, field.name))
