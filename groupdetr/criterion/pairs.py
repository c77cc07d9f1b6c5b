"""Queries and objects face to face: all with all, to be matched, or the matched ones, to be compared.

What several terms look at is laid out once, in float32 whatever the model computes in, and coordinates first: then
the long axes lie behind, and x and y, which are treated alike, in front.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from groupdetr.structures.assignment import Assignment
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import Objects


@dataclass
class Pairs:
    """Boxes of queries and of objects, [4,...]: cx, cy, w, h, or [10,...]: codes of boxes in space. They broadcast."""

    said: Tensor
    wanted: Tensor
    distances: Tensor = field(
        init=False
    )  # of centres and of sizes, [4,...], in shares of the image

    def __post_init__(self) -> None:
        self.distances = (self.said - self.wanted).abs()


@dataclass
class AllPairs(Pairs):
    """Every query with every object of its image: said [4,L,B,K,1,N], wanted [4,1,B,1,T,1]."""

    logits: Tensor  # [L,B,K,T,N] what a query says of the object's class


@dataclass
class MatchedPairs(Pairs):
    """Every query that has an object, with it: said and wanted [4,L,M]."""

    logits: Tensor  # [L,B,K,N,classes] of all queries
    classes: tuple[Tensor, ...]  # where they speak of the objects' classes: five indices [L,M]


class Pairing(Protocol):
    """How a kind of predictions is laid out, for the terms that measure it."""

    compiles: ClassVar[bool]  # does torch.compile make costs and losses faster?

    def lay_out(self, predictions: Predictions, objects: Objects) -> tuple[Tensor, ...]:
        """What `all` is made of, in the order of memory."""
        ...

    def all(self, *laid_out: Tensor) -> Any:
        """What the terms' costs look at."""
        ...

    def matched(
        self,
        predictions: Predictions,
        objects: Objects,
        assignment: Assignment,
        mean_objects: Tensor,
    ) -> Any:
        """What the terms' losses look at. ``mean_objects`` as the criterion has it."""
        ...


class Boxes:
    """Boxes as they were said."""

    compiles: ClassVar[bool] = True

    def lay_out(self, predictions: Predictions, objects: Objects) -> tuple[Tensor, ...]:
        return everyone(predictions, objects)

    def all(self, *laid_out: Tensor) -> AllPairs:
        return AllPairs(*laid_out)

    def matched(
        self,
        predictions: Predictions,
        objects: Objects,
        assignment: Assignment,
        mean_objects: Tensor,
    ) -> MatchedPairs:
        del mean_objects
        return matched(predictions, objects, assignment)


def everyone(predictions: Predictions, objects: Objects) -> tuple[Tensor, Tensor, Tensor]:
    """What `AllPairs` is made of: predictions [L,B,K,N,.], objects [B,T,.] -> said, wanted, logits."""
    stages, images, groups, queries, _ = predictions.logits.shape
    slots = objects.labels.shape[1]
    label = objects.labels.view(1, images, 1, 1, slots).expand(stages, -1, groups, queries, -1)
    logits = predictions.logits.gather(-1, label).float().mT.contiguous()
    said = predictions.boxes.float().movedim(-1, 0).contiguous().unsqueeze(-2)
    wanted = objects.boxes.float().movedim(-1, 0)
    return said, wanted.reshape(len(wanted), 1, images, 1, slots, 1), logits


def matched(predictions: Predictions, objects: Objects, assignment: Assignment) -> MatchedPairs:
    """The pairs of an assignment [L,M].

    Their boxes are contiguous: of other layouts torch.compile makes graphs that fit a single M.
    """
    stage, image, group, query, target = assignment.columns
    said = predictions.boxes[stage, image, group, query].float().movedim(-1, 0).contiguous()
    wanted = objects.boxes.movedim(-1, 0)[:, image, target].float()
    classes = (stage, image, group, query, objects.labels[image, target])
    return MatchedPairs(said, wanted, predictions.logits, classes)
