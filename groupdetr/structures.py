"""The nouns: what flows between the parts of a detector. Each is a dataclass, validated where it is born.

Axes, everywhere: B images, K groups, N queries of a group, C channels, S memory tokens, T objects of an image,
M matched pairs, D denoising queries of a group, L stages that are supervised. Boolean tensors are named for what True
means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.masks import Bitmaps, Canvas, Masks
from groupdetr.movable import Movable, expect


@dataclass
class Images(Movable):
    """A batch of images of different sizes, zero-padded at the right and bottom to the largest."""

    pixels: Tensor  # [B,3,H,W] float, normalised by the ImageNet mean and deviation
    padding: Tensor  # [B,H,W] bool, True where there is no image
    padded: bool = True  # False: known to be without padding; attention then needs no mask

    def __post_init__(self) -> None:
        b, _, h, w = self.pixels.shape
        expect(self.padding.shape == (b, h, w), f"padding {tuple(self.padding.shape)} does not fit {b}x{h}x{w}")
        expect(self.padding.dtype == torch.bool, "padding must be bool, True where there is no image")

    @classmethod
    def from_list(cls, images: Sequence[Tensor]) -> Images:
        """Pad images [3,H_i,W_i] to the largest height and width of the batch."""
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        pads = [(0, width - image.shape[2], 0, height - image.shape[1]) for image in images]
        pixels = torch.stack([F.pad(image, pad) for image, pad in zip(images, pads)])
        padding = [F.pad(torch.zeros_like(x[0], dtype=torch.bool), pad, value=True) for x, pad in zip(images, pads)]
        return cls(pixels, torch.stack(padding), any(map(any, pads)))

    @property
    def beside(self) -> tuple[Tensor, bool]:
        """What an encoder is told beside the feature maps."""
        return self.padding, self.padded

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass
class Memory(Movable):
    """The encoded image: what queries look at. It has no group axis, so K groups never repeat it."""

    tokens: Tensor  # [B,S,C]
    position: Tensor  # [B,S,C] position embedding of every token
    padding: Tensor  # [B,S] bool, True where there is no image
    shapes: tuple[tuple[int, int], ...]  # (height, width) of every level in turn; S is the sum of the areas
    padded: bool = True  # as the images are
    valid_sizes: Tensor = None  # type: ignore[assignment]  # [B,L,2] width, height in tokens of images without padding
    valid_ratios: Tensor = None  # type: ignore[assignment]  # [B,L,2] their shares of the padded width and height

    def __post_init__(self) -> None:
        if self.valid_sizes is None:
            self.valid_sizes, self.valid_ratios = self.measured()
        expect(self.tokens.shape == self.position.shape, "tokens and position must have one shape [B,S,C]")
        expect(self.padding.shape == self.tokens.shape[:2], "padding must be [B,S]")
        expect(sum(h * w for h, w in self.shapes) == self.tokens.shape[1], "shapes must add up to S tokens")

    @property
    def unseen(self) -> Tensor | None:
        """[B,1,1,S] bool: where nobody looks, whatever heads and queries; None where nothing is padded."""
        return self.padding[:, None, None, :] if self.padded else None

    def levels(self, x: Tensor) -> list[Tensor]:
        """[B,S,...] as L of [B,H,W,...]."""
        parts = x.split([h * w for h, w in self.shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes)]

    def measured(self) -> tuple[Tensor, Tensor]:
        """Valid sizes and ratios, float32."""
        valid = [~padding for padding in self.levels(self.padding)]
        sizes = torch.stack([torch.stack([x[:, 0].sum(1), x[:, :, 0].sum(1)], -1) for x in valid], 1).float()
        whole = torch.tensor([(w, h) for h, w in self.shapes], dtype=torch.float32)
        return sizes, sizes / whole.to(sizes.device, non_blocking=True)


@dataclass
class PixelMemory(Memory):
    """With what masks are told of."""

    canvas: Canvas = None  # type: ignore[assignment]  # at a quarter of the images' size


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
    position: Tensor | None = None  # [B|1,K,N,C] its position embedding; None: to be read off the reference
    blocked: Tensor | None = None  # [N,N] bool, True where a query (row) does not see another (column) of its group
    proposals: Predictions | None = None  # [B,K,N,.] what the encoder said, where the references come from it
    denoising: Denoising | None = None  # what is known of the first D of the N queries, in training with denoising
    among: int | None = None  # how many groups losses are means over, if these are a chunk of them

    def __post_init__(self) -> None:
        expect(self.content.ndim == 4, f"queries are [B,K,N,C], not {tuple(self.content.shape)}")
        for name, x in (("position", self.position), ("reference", self.reference)):
            if x is not None:
                expect(len(x) in (1, len(self.content)), f"{name} must be of all images or of each, not of {len(x)}")
                expect(x.shape[1:3] == self.content.shape[1:3], f"{name} must be [B|1,K,N,.], not {tuple(x.shape)}")

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
class Predictions(Movable):
    """What queries say they see, and where: boxes or masks. Indexing indexes all alike: ``predictions[:, 0]`` is the
    primary group."""

    logits: Tensor  # [...,K,N,classes] before the sigmoid, or, one more for no object, before the softmax
    boxes: Tensor = None  # type: ignore[assignment]  # [...,K,N,4] cx,cy,w,h in [0,1] of the unpadded image, or
    # [...,K,N,10] codes of boxes in space
    masks: Masks = None  # type: ignore[assignment]  # [...,K,N]

    def __post_init__(self) -> None:
        expect((self.boxes is None) != (self.masks is None), "predictions say where by boxes or by masks")
        expect(self.logits.shape[:-1] == self.place.shape[:-1], "logits and boxes must agree in all but the last axis")

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
        return layers[0].of(torch.stack([p.logits for p in layers]), torch.stack([p.place for p in layers]))

    def then(self, others: Predictions) -> Predictions:
        """These and others, one after the other on the first axis."""
        return self.of(torch.cat([self.logits, others.logits]), torch.cat([self.place, others.place]))

    def split(self, first: int) -> tuple[Predictions, Predictions]:
        """The first queries of every group, and the rest."""
        sizes = [first, self.logits.shape[-2] - first]
        before, after = map(self.of, self.logits.split(sizes, -2), self.place.split(sizes, -2))
        return before, after


@dataclass
class Target(Movable):
    """The objects of one image. A batch is a list."""

    labels: Tensor  # [T] int64, contiguous class indices
    boxes: Tensor  # [T,4] cx,cy,w,h in [0,1] of the unpadded image, or [T,9] as in ops/boxes3d
    masks: Bitmaps | None = None  # [T], where they are to be learned; may be given as [T,H,W]

    def __post_init__(self) -> None:
        if isinstance(self.masks, Tensor):
            self.masks = Bitmaps.of(self.masks)
        masks = len(self.labels) if self.masks is None else len(self.masks)
        expect(masks == len(self.labels), f"{masks} masks for {len(self.labels)} labels")
        expect(self.labels.ndim == 1, f"labels must be [T], not {tuple(self.labels.shape)}")
        fits = self.boxes.shape in ((len(self.labels), 4), (len(self.labels), 9))
        expect(fits, f"boxes must be [T,4] or [T,9], not {tuple(self.boxes.shape)}")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Objects(Movable):
    """The targets of a batch laid side by side: padded to the T of the most crowded image."""

    labels: Tensor  # [B,T] int64; 0 in padded slots
    boxes: Tensor  # [B,T,4|9]; ones in padded slots: a box with an area, so that costs stay finite
    counts: tuple[int, ...]  # [B] objects of each image
    masks: tuple[Bitmaps | None, ...] = ()  # [B] of [T] each, where they are to be learned

    @property
    def bitmaps(self) -> list[Bitmaps]:
        """The masks, which must be there."""
        drawn = [masks for masks in self.masks if masks is not None]
        expect(len(drawn) == len(self.counts), "targets have no masks: Target(labels, boxes, masks), masks [T,H,W]")
        return drawn

    @classmethod
    def from_targets(cls, targets: Sequence[Target], at_least: int = 0) -> Objects:
        """``at_least``: of slots, if no image has as many objects."""
        counts = tuple(len(t) for t in targets)
        rest = [max(*counts, at_least) - count for count in counts]
        labels = [F.pad(t.labels, (0, n)) for t, n in zip(targets, rest)]
        boxes = [F.pad(t.boxes, (0, 0, 0, n), value=1.0) for t, n in zip(targets, rest)]
        return cls(torch.stack(labels), torch.stack(boxes), counts, tuple(t.masks for t in targets))


@dataclass
class Assignment(Movable):
    """M pairs (query, object) of each of L stages; no object stands twice in one group of one stage."""

    pairs: Tensor  # [4,L,M] int64: image, group, query, target; one tensor, so one copy between devices

    @classmethod
    def of(cls, *columns: np.ndarray) -> Assignment:
        """From image, group, query and target, [L,M] each."""
        return cls(torch.from_numpy(np.stack(columns).astype(np.int64, copy=False)))

    def __post_init__(self) -> None:
        expect(self.pairs.shape[:1] == (4,), f"pairs must be [4,L,M], not {tuple(self.pairs.shape)}")

    @property
    def image(self) -> Tensor:
        return self.pairs[0]

    @property
    def group(self) -> Tensor:
        return self.pairs[1]

    @property
    def query(self) -> Tensor:
        return self.pairs[2]

    @property
    def target(self) -> Tensor:
        """Index into the image's objects."""
        return self.pairs[3]

    def repeated(self, stages: int) -> Assignment:
        """The same pairs in each of L stages: [1,M] -> [L,M]."""
        return Assignment(self.pairs.expand(-1, stages, -1))

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """Stage, image, group, query and target: five indices that broadcast to [L,M]."""
        stage = torch.arange(self.pairs.shape[1], device=self.pairs.device).unsqueeze(1)
        return stage, *self.pairs.unbind()

    def gather(self, x: Tensor) -> Tensor:
        """What belongs to the assigned queries: [L,B,K,N,...] -> [L,M,...]."""
        return x[self.columns[:4]]


@dataclass
class Stages:
    """Predictions that are supervised alike: L of one shape, with the assignment if it is known beforehand."""

    names: tuple[str, ...]  # [L] such as layer0 .. layer5
    predictions: Predictions  # [L,B,K,N,.]
    assignment: Assignment | None = None  # None: to be matched
    copies: int = 1  # how often an object is assigned in a group; losses are means over them
    among: int | None = None  # how many groups losses are means over; None: those that are here


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
        return Stages(tuple(f"{name}-denoising" for name in names), said, assignment, self.copies, self.among)

    def of_groups(self, first: int, last: int) -> Denoising:
        """What is known of some groups; it may be that none of them is supervised."""
        groups = min(self.groups, last) - min(self.groups, first)
        pairs = self.assignment.pairs[..., : groups * self.assignment.pairs.shape[2] // max(1, self.groups)]
        return replace(self, assignment=Assignment(pairs), groups=groups, among=self.among or self.groups)
