"""Class logits with boxes, masks or both, for each query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from groupdetr.structures.masks import MaskFeatures, MaskPredictions
from groupdetr.structures.tensor_dataclass import TensorDataclass, require

# An index of one axis, as torch takes it. None adds an axis of size 1.
Index = int | slice | list[int] | Tensor | None


@dataclass
class Predictions(TensorDataclass):
    """What each query predicts: class logits, and a box, a mask, or both.

    Without ``mask_features`` the location is a box. With them it is the embedding of a mask, as in
    Mask2Former, unless there is a ``mask_embedding`` of its own: then the location is a box, and
    the query predicts both, as in RF-DETR-Seg. Read them as `boxes` and `masks`. Indexing applies
    to all tensors of queries alike: ``predictions[:, 0]`` is the primary group.

    >>> logits, boxes = torch.rand(2, 11, 300, 80), torch.rand(2, 11, 300, 4)
    >>> predictions = groupdetr.Predictions(logits, boxes)
    >>> predictions[:, 0].boxes.shape
    torch.Size([2, 300, 4])
    >>> predictions.flatten_groups().boxes.shape
    torch.Size([2, 3300, 4])
    """

    logits: Tensor  # [...,K,N,classes] before the sigmoid; with a softmax, the last is "no object"
    # [...,K,N,4] cx,cy,w,h in [0,1] of the unpadded image, or [...,K,N,10] encoded 3D boxes, or
    # [...,K,N,C] mask embeddings of a detector that predicts masks alone
    location: Tensor
    # What the mask embeddings are multiplied with. If predictions [L,...] of several layers are
    # stacked, and each layer has mask features of its own, it is a tuple of L.
    mask_features: MaskFeatures | tuple[MaskFeatures, ...] | None = None
    # [...,K,N,C|C+1] of a detector that predicts boxes and masks; see `MaskPredictions`
    mask_embedding: Tensor | None = None

    def __post_init__(self) -> None:
        require(
            self.logits.shape[:-1] == self.location.shape[:-1],
            f"logits {tuple(self.logits.shape)} and location {tuple(self.location.shape)} "
            "must agree in all but the last axis",
        )
        if self.mask_embedding is not None:
            require(
                self.logits.shape[:-1] == self.mask_embedding.shape[:-1],
                f"logits {tuple(self.logits.shape)} and mask_embedding "
                f"{tuple(self.mask_embedding.shape)} must agree in all but the last axis",
            )
            require(self.mask_features is not None, "a mask_embedding needs mask_features")

    @property
    def has_boxes(self) -> bool:
        """True if a box is predicted, and not a mask alone."""
        return self.mask_features is None or self.mask_embedding is not None

    @property
    def has_masks(self) -> bool:
        """True if a mask is predicted."""
        return self.mask_features is not None

    @property
    def boxes(self) -> Tensor:
        """[...,K,N,4] boxes or [...,K,N,10] encoded 3D boxes.

        `ValueError` if masks alone are predicted.
        """
        require(self.has_boxes, "these predictions have masks and no boxes")
        return self.location

    @property
    def embeddings_of_masks(self) -> Tensor:
        """[...,K,N,C|C+1] mask embeddings. `ValueError` if boxes alone are predicted."""
        require(self.has_masks, "these predictions have boxes and no masks")
        return self.location if self.mask_embedding is None else self.mask_embedding

    @property
    def masks(self) -> MaskPredictions:
        """[...,K,N] masks. The axis of images must be the first.

        `ValueError` if boxes alone are predicted, or if these are predictions of several layers
        with different mask features.
        """
        embedding = self.embeddings_of_masks
        if not isinstance(self.mask_features, MaskFeatures):
            raise ValueError("masks of several layers have different mask features")
        return MaskPredictions(embedding, self.mask_features)

    def mask_features_by_layer(self) -> tuple[MaskFeatures, ...]:
        """Return the mask features of predictions [L,...]: one for all layers, or L.

        `ValueError` if boxes alone are predicted.
        """
        if self.mask_features is None:
            raise ValueError("these predictions have boxes and no masks")
        if isinstance(self.mask_features, MaskFeatures):
            return (self.mask_features,)
        return self.mask_features

    def to_boxes(self) -> Tensor:
        """Return [...,K,N,4]: the boxes, or the tightest boxes around the masks.

        Without predicted boxes it evaluates all masks at full size, so it is meant for a few
        queries.
        """
        return self.boxes if self.has_boxes else self.masks.boxes()

    def with_values(self, logits: Tensor, location: Tensor) -> Predictions:
        """Return predictions of the same kind with other logits and locations."""
        return replace(self, logits=logits, location=location)

    def map_queries(self, function: Callable[[Tensor], Tensor]) -> Predictions:
        """Return predictions with ``function`` applied to every tensor of queries.

        These are the logits, the locations and the mask embeddings. The mask features stay.
        """
        embedding = self.mask_embedding
        return replace(
            self,
            logits=function(self.logits),
            location=function(self.location),
            mask_embedding=None if embedding is None else function(embedding),
        )

    def query_tensors(self) -> list[Tensor]:
        """Return the tensors of queries: logits, locations, and the mask embeddings if any."""
        tensors = [self.logits, self.location]
        if self.mask_embedding is not None:
            tensors.append(self.mask_embedding)
        return tensors

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Predictions:
        """Index all tensors of queries alike. For masks, the index must keep the axis of images.

        `ValueError` if layers that have mask features of their own are selected.
        """
        if isinstance(self.mask_features, tuple):
            first = index[0] if isinstance(index, tuple) else index
            require(
                first == slice(None),
                "layers with different mask features cannot be selected by an index",
            )
        return self.map_queries(lambda x: x[index])

    def ignoring(self, ignored: Tensor) -> Predictions:
        """Return predictions in which the queries ``ignored`` have no classification loss.

        ``ignored``, a bool, broadcasts to [...,K,N]. Their logits become minus infinity: with
        certainty, there is no object.
        """
        logits = self.logits.masked_fill(ignored.unsqueeze(-1), float("-inf"))
        return self.with_values(logits, self.location)

    def flatten_groups(self) -> Predictions:
        """Concatenate the groups: [B,K,N,.] -> [B,K*N,.]."""
        return self.map_queries(lambda x: x.flatten(1, 2))

    @classmethod
    def stack(cls, layers: Sequence[Predictions]) -> Predictions:
        """Stack L predictions of the same shape into one, [L,...].

        Mask features are not copied: the result has those of every layer, or one if all layers
        share it.
        """
        tensors = [torch.stack(values) for values in zip(*(x.query_tensors() for x in layers))]
        features = [layer.mask_features for layer in layers]
        shared = all(x is features[0] for x in features)
        return layers[0]._with_tensors(tensors, features[0] if shared else _in_a_row(features))

    def cat(self, others: Predictions) -> Predictions:
        """Concatenate predictions of layers, [L,...] each, along the first axis."""
        pairs = zip(self.query_tensors(), others.query_tensors())
        tensors = [torch.cat(pair) for pair in pairs]
        if self.mask_features is others.mask_features:
            return self._with_tensors(tensors, self.mask_features)
        # One for all layers is repeated for each of them.
        features: list[MaskFeatures | tuple[MaskFeatures, ...] | None] = []
        for part in (self, others):
            one_for_all = not isinstance(part.mask_features, tuple)
            features += [part.mask_features] * (len(part.logits) if one_for_all else 1)
        return self._with_tensors(tensors, _in_a_row(features))

    def _with_tensors(
        self, tensors: Sequence[Tensor], features: MaskFeatures | tuple[MaskFeatures, ...] | None
    ) -> Predictions:
        """Return predictions with other `query_tensors` and mask features."""
        logits, location, *embedding = tensors
        return Predictions(logits, location, features, *embedding)

    def split(self, first: int) -> tuple[Predictions, Predictions]:
        """Split every group into its ``first`` queries and the remaining ones."""
        sizes = [first, self.logits.shape[-2] - first]
        before, after = zip(*(x.split(sizes, -2) for x in self.query_tensors()))
        features = self.mask_features
        return self._with_tensors(before, features), self._with_tensors(after, features)


def _in_a_row(
    features: Sequence[MaskFeatures | tuple[MaskFeatures, ...] | None],
) -> tuple[MaskFeatures, ...]:
    """Return mask features of one or more layers each as a flat tuple."""
    flat: list[MaskFeatures] = []
    for item in features:
        flat += item if isinstance(item, tuple) else [item] if item is not None else []
    return tuple(flat)
