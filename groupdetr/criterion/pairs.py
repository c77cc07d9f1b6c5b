"""Queries and objects face to face: all with all, to be matched, or the matched ones, to be compared.

What several terms look at is laid out once, in float32 whatever the model computes in, and coordinates first: then
the long axes lie behind, and x and y, which are treated alike, in front.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from groupdetr.structures import Assignment, Objects, Predictions


@dataclass
class Pairs(ABC):
    """Queries of L stages, and objects of the same images."""

    predictions: Predictions  # [L,B,K,N,.]
    objects: Objects  # [B,T,.]

    @property
    @abstractmethod
    def said(self) -> Tensor:
        """The boxes of queries, [4,...]: cx, cy, w, h."""

    @property
    @abstractmethod
    def wanted(self) -> Tensor:
        """The boxes of objects, [4,...], which broadcast with those of queries."""

    @cached_property
    def distances(self) -> Tensor:
        """Of centres and of sizes, [4,...], in shares of the image."""
        return (self.said - self.wanted).abs()


@dataclass
class AllPairs(Pairs):
    """Every query with every object of its image: [L,B,K,T,N]."""

    @cached_property
    def said(self) -> Tensor:
        return self.predictions.boxes.float().movedim(-1, 0).contiguous().unsqueeze(-2)

    @cached_property
    def wanted(self) -> Tensor:
        images, slots, sides = self.objects.boxes.shape
        return self.objects.boxes.float().movedim(-1, 0).reshape(sides, 1, images, 1, slots, 1)

    @property
    def logits(self) -> Tensor:
        """What a query says of the object's class."""
        stages, images, groups, queries, _ = self.predictions.logits.shape
        label = self.objects.labels.view(1, images, 1, 1, self.objects.labels.shape[1])
        return self.predictions.logits.gather(-1, label.expand(stages, -1, groups, queries, -1)).float().mT


@dataclass
class MatchedPairs(Pairs):
    """Every query that has an object, with it: [L,M]."""

    assignment: Assignment

    @cached_property
    def said(self) -> Tensor:
        return self.assignment.gather(self.predictions.boxes).float().movedim(-1, 0)

    @cached_property
    def wanted(self) -> Tensor:
        return self.assignment.gather_objects(self.objects.boxes).float().movedim(-1, 0)

    @property
    def classes(self) -> tuple[Tensor, ...]:
        """Where the logits are [L,B,K,N,classes] that speak of the objects' classes: five indices [L,M]."""
        return *self.assignment.rows, self.assignment.gather_objects(self.objects.labels)
