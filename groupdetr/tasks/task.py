"""What the engine needs to know of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from groupdetr.data.batch import Pictures
from groupdetr.structures import Assignment, Objects, Predictions, Stages


class Evaluated(Protocol):
    """The outcome of an evaluation: named figures, AP first among them."""

    @property
    def stats(self) -> dict[str, float]: ...

    def to_json(self) -> dict[str, Any]: ...


class Task(Protocol):
    """Pictures to train and validate on, and what the answers to the latter are worth."""

    train: Pictures
    val: Pictures

    def postprocess(self, answer: Predictions, indices: Sequence[int]) -> list[Any]:
        """What the answers [B,N,.] for val pictures ``indices`` come to, on the host."""
        ...

    def evaluate(self, found: Sequence[Any]) -> Evaluated:
        """``found``: what `postprocess` gave for every val picture, in order."""
        ...

    def names(self, indices: Sequence[int]) -> list[str]:
        """The train pictures of a batch, for messages."""
        ...


class Compared(Protocol):
    """What the engine asks of a criterion, besides losses."""

    def assign(self, stages: Stages, objects: Objects) -> Assignment:
        """Which query is matched to which object; evaluations look at it."""
        ...

    def compile_parts(self) -> None:
        """Let torch.compile make it faster."""
        ...
