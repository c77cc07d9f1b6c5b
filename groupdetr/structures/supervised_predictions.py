"""Predictions that the criterion supervises together."""

from __future__ import annotations

from dataclasses import dataclass

from groupdetr.structures.assignment import Assignment
from groupdetr.structures.predictions import Predictions


@dataclass
class SupervisedPredictions:
    """Predictions of L layers with one shape, and their assignment if it is known beforehand.

    DETR's auxiliary losses are the losses of all layers but the last.
    """

    names: tuple[str, ...]  # [L] prefixes of the losses, such as layer0 .. layer5
    predictions: Predictions  # [L,B,K,N,.]
    assignment: Assignment | None = None  # None: the matcher computes it
    copies: int = 1  # queries of a group that one object is assigned to; losses are means over them
    total_groups: int | None = None  # groups that losses are means over; None: K of `predictions`
