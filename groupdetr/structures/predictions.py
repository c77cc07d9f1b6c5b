"""Class logits with boxes or masks, one for each query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from groupdetr.structures.masks import MaskFeatures, MaskPredictions
from groupdetr.structures.tensor_dataclass import TensorDataclass, require

# An index of one axis, as torch takes it. None adds an axis of size 1.
Index = int | slice | list[int] | Tensor | None


@dataclass
class Predictions(TensorDataclass):
    """What each query predicts: class logits and a location, which is a box or a mask.

    Without ``mask_features`` the location is a box; read it as `boxes`. With them it is the
    embedding of a mask; read it as `masks`. Indexing applies to logits and location alike:
    ``predictions[:, 0]`` is the primary group.

    >>> logits, boxes = torch.rand(2, 11, 300, 80), torch.rand(2, 11, 300, 4)
    >>> predictions = groupdetr.Predictions(logits, boxes)
    >>> predictions[:, 0].boxes.shape
    torch.Size([2, 300, 4])
    >>> predictions.flatten_groups().boxes.shape
    torch.Size([2, 3300, 4])
    """

    logits: Tensor  # [...,K,N,classes] before the sigmoid; with a softmax, the last is "no object"
    # [...,K,N,4] cx,cy,w,h in [0,1] of the unpadded image, or [...,K,N,10] encoded 3D boxes, or
    # [...,K,N,C] mask embeddings
    location: Tensor
    mask_features: MaskFeatures | None = None  # what the mask embeddings are multiplied with

    def __post_init__(self) -> None:
        require(
            self.logits.shape[:-1] == self.location.shape[:-1],
            f"logits {tuple(self.logits.shape)} and location {tuple(self.location.shape)} "
            "must agree in all but the last axis",
        )

    @property
    def boxes(self) -> Tensor:
        """[...,K,N,4] boxes or [...,K,N,10] encoded 3D boxes. Only if the location is a box."""
        require(self.mask_features is None, "these predictions have masks and no boxes")
        return self.location

    @property
    def masks(self) -> MaskPredictions:
        """[...,K,N] masks. Only if the location is a mask. The axis of images must be the first."""
        if self.mask_features is None:
            raise ValueError("these predictions have boxes and no masks")
        return MaskPredictions(self.location, self.mask_features)

    def to_boxes(self) -> Tensor:
        """Return [...,K,N,4]: the boxes, or the tightest boxes around the masks.

        It evaluates all masks at full size, so it is meant for a few queries.
        """
        return self.boxes if self.mask_features is None else self.masks.boxes()

    def with_values(self, logits: Tensor, location: Tensor) -> Predictions:
        """Return predictions of the same kind with other values."""
        return replace(self, logits=logits, location=location)

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Predictions:
        """Index all tensors alike. For masks, the index must keep the axis of images."""
        return self.with_values(self.logits[index], self.location[index])

    def ignoring(self, ignored: Tensor) -> Predictions:
        """Return predictions in which the queries ``ignored`` have no classification loss.

        ``ignored``, a bool, broadcasts to [...,K,N]. Their logits become minus infinity: with
        certainty, there is no object.
        """
        logits = self.logits.masked_fill(ignored.unsqueeze(-1), float("-inf"))
        return self.with_values(logits, self.location)

    def flatten_groups(self) -> Predictions:
        """Concatenate the groups: [B,K,N,.] -> [B,K*N,.]."""
        return self.with_values(self.logits.flatten(1, 2), self.location.flatten(1, 2))

    @classmethod
    def stack(cls, layers: Sequence[Predictions]) -> Predictions:
        """Stack L predictions of the same shape into one, [L,...]."""
        logits = torch.stack([layer.logits for layer in layers])
        location = torch.stack([layer.location for layer in layers])
        return layers[0].with_values(logits, location)

    def cat(self, others: Predictions) -> Predictions:
        """Concatenate with ``others`` along the first axis."""
        logits = torch.cat([self.logits, others.logits])
        location = torch.cat([self.location, others.location])
        return self.with_values(logits, location)

    def split(self, first: int) -> tuple[Predictions, Predictions]:
        """Split every group into its ``first`` queries and the remaining ones."""
        sizes = [first, self.logits.shape[-2] - first]
        logits = self.logits.split(sizes, -2)
        location = self.location.split(sizes, -2)
        before = self.with_values(logits[0], location[0])
        after = self.with_values(logits[1], location[1])
        return before, after
