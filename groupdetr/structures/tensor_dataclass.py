"""Base class of all dataclasses of tensors, and how their fields are validated."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Self

import torch
from torch import Tensor

from groupdetr.ops.transfer import to_device


def require(condition: bool, message: str) -> None:
    """Raise `ValueError` with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_count(name: str, value: object, lowest: int = 1) -> None:
    """Raise `ValueError` unless ``value`` is a whole number of at least ``lowest``."""
    try:
        # Integers of NumPy and tensors of one integer are whole numbers, too.
        is_count = operator.index(value) >= lowest  # type: ignore[arg-type]
    except TypeError:
        is_count = False
    require(is_count, f"{name} must be a whole number of {lowest} or more, not {value!r}")


class TensorDataclass:
    """A dataclass whose tensors are moved between devices together."""

    def to(self, device: torch.device | str) -> Self:
        """Return a copy on ``device``."""
        return self.map(lambda x: to_device(x, device))

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return a copy with ``function`` applied to every tensor.

        Tensors inside of nested dataclasses, and of tuples, are included.
        """

        def apply(value: object) -> object:
            if isinstance(value, TensorDataclass):
                return value.map(function)
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, tuple):
                return tuple(apply(item) for item in value)
            return value

        assert is_dataclass(self)
        return type(self)(**{f.name: apply(getattr(self, f.name)) for f in fields(self)})
