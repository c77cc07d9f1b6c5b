"""Object queries and denoising queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from groupdetr.structures.assignment import Assignment
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.supervised_predictions import SupervisedPredictions
from groupdetr.structures.tensor_dataclass import TensorDataclass, require


@dataclass
class Queries(TensorDataclass):
    """K groups of N object queries. A plain DETR has K = 1.

    If all images share a position or reference, its first axis has size 1 instead of B, and what
    depends on it alone is computed once.

    >>> content, reference = torch.rand(2, 11, 300, 256), torch.rand(1, 11, 300, 4)
    >>> queries = groupdetr.Queries(content, reference)
    >>> queries.slice_groups(0, 4).content.shape  # the first four of eleven groups
    torch.Size([2, 4, 300, 256])
    """

    content: Tensor  # [B,K,N,C]
    # [B|1,K,N,R] the position that a query attends to, in [0,1]: a point (R=2: x,y; R=3: x,y,z), a
    # box (R=4: cx,cy,w,h), or no position (R=0) until Mask2Former has predicted its first mask
    reference: Tensor
    position: Tensor | None = None  # [B|1,K,N,C]; None if it is computed from the reference
    blocked: Tensor | None = None  # [N,N] bool, True where a query (row) does not attend to another
    # [B,K,N,.] predictions of the encoder that the queries come from, for two-stage detectors
    proposals: Predictions | None = None
    denoising: Denoising | None = None  # describes the first D of the N queries, in training
    # The number of groups of the whole training step, if these are a chunk of them.
    # Losses are means over all groups.
    total_groups: int | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.content.shape)
        require(self.content.ndim == 4, f"content must be [B,K,N,C], not {shape}")
        # len() of a tensor would fix the batch size of an exported graph.
        images = self.content.shape[0]
        for name, x in (("position", self.position), ("reference", self.reference)):
            if x is None:
                continue
            require(
                x.shape[0] in (1, images),
                f"the first axis of {name} must be 1 or {images}, not {x.shape[0]}",
            )
            require(
                x.shape[1:3] == self.content.shape[1:3],
                f"{name} must be [B|1,K,N,.], not {tuple(x.shape)}",
            )

    @property
    def num_denoising(self) -> int:
        """D, the number of denoising queries in front of the matching queries of a group."""
        return 0 if self.denoising is None else self.denoising.num_queries

    def slice_groups(self, first: int, last: int) -> Queries:
        """Return the groups from ``first`` to ``last``, ``last`` excluded.

        They are a complete training problem of their own. Because of `total_groups`, the losses of
        all slices add up to the losses of all groups.
        """
        groups = (slice(None), slice(first, last))  # axes B and K
        position = self.position
        proposals = self.proposals
        denoising = self.denoising
        if position is not None:
            position = position[groups]
        if proposals is not None:
            proposals = proposals[groups]
        if denoising is not None:
            denoising = denoising.slice_groups(first, last)
        return replace(
            self,
            content=self.content[groups],
            reference=self.reference[groups],
            position=position,
            proposals=proposals,
            denoising=denoising,
            total_groups=self.total_groups or self.content.shape[1],
        )


@dataclass
class Denoising(TensorDataclass):
    """The first D queries of a group are noised objects, so their assignment is known (DN-DETR).

    (Li et al. 2022)
    """

    assignment: Assignment  # [1,M] of the positive queries, group after group, equal in all groups
    unsupervised: Tensor  # [B,1,D] bool, True for queries that have no loss
    copies: int  # the number of noised copies of every object
    groups: int  # the number of groups that are supervised, counted from the first
    total_groups: int | None = None  # of the whole training step, if these are a chunk of them

    @property
    def num_queries(self) -> int:
        """D, the number of denoising queries of a group."""
        return self.unsupervised.shape[-1]

    def supervised(self, names: Sequence[str], layers: Predictions) -> SupervisedPredictions:
        """Return the predictions [L,B,K,D,.] of the denoising queries with their assignment."""
        predictions = layers[:, :, : self.groups].ignoring(self.unsupervised)
        return SupervisedPredictions(
            tuple(f"{name}-denoising" for name in names),
            predictions,
            self.assignment.expand_layers(len(names)),
            self.copies,
            self.total_groups,
        )

    def slice_groups(self, first: int, last: int) -> Denoising:
        """Return the denoising of the groups from ``first`` to ``last``, ``last`` excluded.

        It is possible that none of these groups is supervised.
        """
        groups = min(self.groups, last) - min(self.groups, first)
        pairs_per_group = self.assignment.pairs.shape[2] // max(1, self.groups)
        # All groups have the same pairs, so those of the first groups can be used.
        pairs = self.assignment.pairs[..., : groups * pairs_per_group]
        return replace(
            self,
            assignment=Assignment(pairs),
            groups=groups,
            total_groups=self.total_groups or self.groups,
        )
