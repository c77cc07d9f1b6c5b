"""The losses of a step and the norm of its gradient, which reach the host without a wait."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import Tensor

from groupdetr.ops.transfer import start_copy_to_host


class StepResults:
    """The losses of an optimizer step by name, and the norm of its gradient before clipping.

    A GPU copies them to the host when it has computed them, while the host already prepares the
    next step. Only reading them waits. ``names`` [n] are those of the losses, and ``values`` [n+1]
    are the losses and the norm.

    >>> results = StepResults(["layer0/l1", "layer0/giou"], torch.tensor([0.25, 0.5, 3.0]))
    >>> results.loss, results.grad_norm
    (0.75, 3.0)
    """

    def __init__(self, names: Sequence[str], values: Tensor) -> None:
        self.names = list(names)
        self._values, self.copied = start_copy_to_host(values)

    @property
    def is_late(self) -> bool:
        """True if reading the results may have to wait for a GPU."""
        return self.copied is not None

    @cached_property
    def numbers(self) -> list[float]:
        """The losses and the norm. Reading them waits until the GPU has computed them."""
        if self.copied is not None:
            self.copied.synchronize()
        numbers: list[float] = self._values.tolist()
        return numbers

    @property
    def losses(self) -> Mapping[str, float]:
        """The losses by name, averaged over micro-batches and processes."""
        return dict(zip(self.names, self.numbers))

    @property
    def loss(self) -> float:
        """The sum of all losses."""
        return sum(self.losses.values())

    @property
    def grad_norm(self) -> float:
        """The L2 norm of the gradient before clipping."""
        return self.numbers[-1]

    def are_finite(self) -> bool:
        """True if neither a loss nor the norm is infinite or nan."""
        return all(map(math.isfinite, self.numbers))
