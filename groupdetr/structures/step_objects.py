"""The numbers of objects that the losses of an optimizer step are divided by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from groupdetr.structures.tensor_dataclass import require, require_count


@dataclass(frozen=True)
class StepObjects:
    """How many objects every image of an optimizer step has, and into how many parts it is divided.

    A step is divided into micro-batches by gradient accumulation, and over processes by distributed
    training. Every part computes its own losses, and the loss of the step is their mean. Given the
    objects of the whole step, every part divides by the same number. So the mean is the loss of
    the undivided batch, and it does not depend on the number of parts.

    With several processes and micro-batches, every process needs the counts of all of them. With
    one micro-batch per process, the criterion adds them by itself, and no `StepObjects` is needed.

    The parts must have equal numbers of images. Four images of one step, in two micro-batches:

    >>> counts = [3, 0, 1, 2]
    >>> step = groupdetr.StepObjects(counts, parts=2)
    >>> for outputs, targets in micro_batches:
    ...     loss = sum(criterion(outputs, targets, step).values())
    ...     (loss / step.parts).backward()

    `ValueError` if a count is not a whole number of at least 0, or if ``counts`` cannot be divided
    into ``parts`` of equal size.
    """

    counts: Sequence[int]  # number of objects of every image of the step, in any order
    parts: int = 1  # micro-batches of all processes

    def __post_init__(self) -> None:
        require(
            isinstance(self.counts, Sequence) and not isinstance(self.counts, str),
            "counts must be a list with the number of objects of every image of the step, "
            f"not {self.counts!r}",
        )
        for count in self.counts:
            require_count("every number in counts", count, lowest=0)
        require_count("parts", self.parts)
        require(
            len(self.counts) % self.parts == 0,
            f"{len(self.counts)} images cannot be divided into {self.parts} parts of equal size",
        )
