"""Object queries and denoising queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from groupdetr.structures.assignment import Assignment
from groupdetr.structures.aux_outputs import Stages
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.tensor_dataclass import Movable, expect


@dataclass
class Queries(Movable):
    """K groups of N queries. A plain DETR is K = 1.

    Where all images share a position or reference, it has one row instead of B, and what is computed of it is
    computed once.
    """

    content: Tensor  # [B,K,N,C] what a query knows
    reference: (
        Tensor  # [B|1,K,N,R] where it looks, in [0,1]: a point (R=2: x,y; R=3: x,y,z), a box (R=4: cx,cy,w,h),
        # or (R=0) everywhere, until a mask is told
    )
    position: Tensor | None = (
        None  # [B|1,K,N,C] its position embedding; None: to be read off the reference
    )
    blocked: Tensor | None = (
        None  # [N,N] bool, True where a query (row) does not see another (column) of its group
    )
    proposals: Predictions | None = (
        None  # [B,K,N,.] what the encoder said, where the references come from it
    )
    denoising: Denoising | None = (
        None  # what is known of the first D of the N queries, in training with denoising
    )
    among: int | None = None  # how many groups losses are means over, if these are a chunk of them

    def __post_init__(self) -> None:
        expect(self.content.ndim == 4, f"queries are [B,K,N,C], not {tuple(self.content.shape)}")
        for name, x in (("position", self.position), ("reference", self.reference)):
            if x is not None:
                expect(
                    len(x) in (1, len(self.content)),
                    f"{name} must be of all images or of each, not of {len(x)}",
                )
                expect(
                    x.shape[1:3] == self.content.shape[1:3],
                    f"{name} must be [B|1,K,N,.], not {tuple(x.shape)}",
                )

    @property
    def num_denoising(self) -> int:
        """D: queries of a group that stand in front of those to be matched."""
        return self.denoising.num_queries if self.denoising else 0

    def of_groups(self, first: int, last: int) -> Queries:
        """A chunk of groups, ``last`` excluded: a training problem of its own, whose losses are parts of the whole's
        and add up to them."""
        here = (slice(None), slice(first, last))
        return replace(
            self,
            content=self.content[here],
            reference=self.reference[here],
            position=None if self.position is None else self.position[here],
            proposals=None if self.proposals is None else self.proposals[here],
            denoising=None if self.denoising is None else self.denoising.of_groups(first, last),
            among=self.among or self.content.shape[1],
        )


@dataclass
class Denoising(Movable):
    """The first D queries of a group are noised copies of objects, and it is known which (DN-DETR, Li et al. 2022)."""

    assignment: Assignment  # [1,M] of the queries that are to find their object again, group after group, all alike
    unsupervised: Tensor  # [B,1,D] bool, True where a query is told nothing
    copies: int  # of every object
    groups: int  # how many groups, from the first, are supervised
    among: int | None = None  # how many are in all, if these are a chunk of them

    @property
    def num_queries(self) -> int:
        """D."""
        return self.unsupervised.shape[-1]

    def stages(self, names: Sequence[str], layers: Predictions) -> Stages:
        """What the denoising queries of all layers [L,B,K,D,.] are to answer."""
        said = layers[:, :, : self.groups].silent(self.unsupervised)
        assignment = self.assignment.repeated(len(names))
        return Stages(
            tuple(f"{name}-denoising" for name in names), said, assignment, self.copies, self.among
        )

    def of_groups(self, first: int, last: int) -> Denoising:
        """What is known of some groups; it may be that none of them is supervised."""
        groups = min(self.groups, last) - min(self.groups, first)
        pairs = self.assignment.pairs[
            ..., : groups * self.assignment.pairs.shape[2] // max(1, self.groups)
        ]
        return replace(
            self, assignment=Assignment(pairs), groups=groups, among=self.among or self.groups
        )
