"""What training needs to know of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from groupdetr.structures.assignment import Assignment
from groupdetr.structures.aux_outputs import Stages
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import Objects, Target


class Evaluated(Protocol):
    """The outcome of an evaluation: named figures, first the one that tells which is best."""

    @property
    def stats(self) -> dict[str, float]: ...

    def to_json(self) -> dict[str, Any]: ...


class Pieces(Protocol):
    """A batch, as the engine takes it: one picture, or one scene, for each target."""

    targets: list[Target]
    indices: list[int]

    def images(self, device: torch.device) -> Any:
        """What the network sees."""
        ...


class Source(Protocol):
    """What is trained or validated on, by index or `Draw`."""

    def __len__(self) -> int: ...

    def __hash__(self) -> int: ...

    def __getitem__(self, draw: Any) -> Any: ...

    def collate(self, samples: Sequence[Any]) -> Any:
        """A batch, `Pieces`."""
        ...


class Worst(Protocol):
    """The largest batches that training can draw."""

    def pixels(self, images: int) -> int:
        """Of a batch of so many."""
        ...

    def batch(self, images: int) -> Pieces:
        """It, or what needs as much memory."""
        ...


class Task(Protocol):
    """What to train and validate on, and what the answers to the latter are worth."""

    @property
    def kind(self) -> str:
        """What is found: box, mask, or space for boxes in it."""
        ...

    @property
    def sees(self) -> str:
        """What a detector is shown, pictures or scenes; verbs of the command line go by it."""
        ...

    @property
    def figures(self) -> tuple[str, ...]:
        """Those of an evaluation that are shown while training, shares all of them, the deciding one first."""
        ...

    @property
    def train(self) -> Source: ...

    @property
    def val(self) -> Source: ...

    @property
    def kept(self) -> int:
        """Bytes of decoded training pictures that all loader processes together come to keep, at most."""
        ...

    def worst(self, burden: Callable[[int], int]) -> Worst:
        """Of the training. ``burden`` of a number of objects: how much they weigh, as more objects may be fewer queries
        where they are denoised."""
        ...

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
