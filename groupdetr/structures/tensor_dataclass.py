"""What all nouns have in common: they are dataclasses of tensors, validated where they are born, that move together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Self

import torch
from torch import Tensor


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class Movable:
    """Dataclasses of tensors that move between devices together."""

    def to(self, device: torch.device | str) -> Self:
        return self.mapped(lambda x: x.to(device, non_blocking=True))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same of changed tensors, here and in what it is made of."""

        def of(value: Any) -> Any:
            if isinstance(value, Movable):
                return value.mapped(change)
            return change(value) if isinstance(value, Tensor) else value

        return type(self)(**{f.name: of(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type]
