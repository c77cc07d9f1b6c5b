"""Class logits with boxes or masks, one for each query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from groupdetr.structures.masks import Masks
from groupdetr.structures.tensor_dataclass import Movable, expect


@dataclass
class Predictions(Movable):
    """What queries say they see, and where: boxes or masks. Indexing indexes all alike: ``predictions[:, 0]`` is the
    primary group."""

    logits: Tensor  # [...,K,N,classes] before the sigmoid, or, one more for no object, before the softmax
    boxes: Tensor = None  # type: ignore[assignment]  # [...,K,N,4] cx,cy,w,h in [0,1] of the unpadded image, or
    # [...,K,N,10] codes of boxes in space
    masks: Masks = None  # type: ignore[assignment]  # [...,K,N]

    def __post_init__(self) -> None:
        expect(
            (self.boxes is None) != (self.masks is None),
            "predictions say where by boxes or by masks",
        )
        expect(
            self.logits.shape[:-1] == self.place.shape[:-1],
            "logits and boxes must agree in all but the last axis",
        )

    @property
    def place(self) -> Tensor:
        """[...,K,N,.] what is said of where it is: the box, or the embedding of the mask."""
        return self.boxes if self.masks is None else self.masks.embedding

    def bounds(self) -> Tensor:
        """[...,K,N,4] the boxes, or those around the masks: as boxes are told. For a few queries of masks."""
        return self.boxes if self.masks is None else self.masks.boxes()

    def of(self, logits: Tensor, place: Tensor) -> Predictions:
        """The same kind of predictions of others' values."""
        if self.masks is None:
            return Predictions(logits, place)
        return Predictions(logits, masks=Masks(place, self.masks.canvas))

    def __getitem__(self, index: Any) -> Predictions:
        """Of masks the axis of images is to be kept."""
        return self.of(self.logits[index], self.place[index])

    def silent(self, who: Tensor) -> Predictions:
        """The queries ``who`` (bool, broadcasts to [...,K,N]) say with certainty that nothing is there: no loss."""
        return self.of(self.logits.masked_fill(who.unsqueeze(-1), float("-inf")), self.place)

    def end_to_end(self) -> Predictions:
        """[B,K,N,.] -> [B,K*N,.]"""
        return self.of(self.logits.flatten(1, 2), self.place.flatten(1, 2))

    @classmethod
    def stack(cls, layers: Sequence[Predictions]) -> Predictions:
        """L predictions of one shape as one, [L,...]."""
        return layers[0].of(
            torch.stack([p.logits for p in layers]), torch.stack([p.place for p in layers])
        )

    def then(self, others: Predictions) -> Predictions:
        """These and others, one after the other on the first axis."""
        return self.of(
            torch.cat([self.logits, others.logits]), torch.cat([self.place, others.place])
        )

    def split(self, first: int) -> tuple[Predictions, Predictions]:
        """The first queries of every group, and the rest."""
        sizes = [first, self.logits.shape[-2] - first]
        before, after = map(self.of, self.logits.split(sizes, -2), self.place.split(sizes, -2))
        return before, after
