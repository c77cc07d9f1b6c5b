"""Predictions that the criterion supervises together."""

from __future__ import annotations

from dataclasses import dataclass

from groupdetr.structures.assignment import Assignment
from groupdetr.structures.predictions import Predictions


@dataclass
class Stages:
    """Predictions that are supervised alike: L of one shape, with the assignment if it is known beforehand."""

    names: tuple[str, ...]  # [L] such as layer0 .. layer5
    predictions: Predictions  # [L,B,K,N,.]
    assignment: Assignment | None = None  # None: to be matched
    copies: int = 1  # how often an object is assigned in a group; losses are means over them
    among: int | None = None  # how many groups losses are means over; None: those that are here
