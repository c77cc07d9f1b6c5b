"""Replaces the queries of one group, and measures how much that changes the outputs of others.

The outputs of a model that is not of this library may have any order of axes. `QueryAxes` says
which of them are images and groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rounding of float32: for another number of queries, kernels may sum in another order.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class GroupSizes:
    """The number of groups K, and the number of queries of a group N."""

    num_groups: int
    num_queries: int

    @property
    def total(self) -> int:
        """K*N."""
        return self.num_groups * self.num_queries


@dataclass(frozen=True)
class QueryAxes:
    """Which axes of a tensor are the groups and the images."""

    group: int  # the axis of K groups, or of all K*N queries
    is_flat: bool  # True if one axis has all K*N queries, group after group; else K and N are two
    image: int | None = None  # the axis of B images, None for a tensor that has none

    def split(self, x: Tensor, num_groups: int) -> Tensor:
        """Return a view of a tensor: [B,K,...], or [K,...] if it has no axis of images."""
        image = self.image
        if self.is_flat:
            x = x.unflatten(self.group, (num_groups, -1))
            # The axes behind that of the queries have moved by one.
            if image is not None and image > self.group:
                image += 1
        if image is None:
            return x.movedim(self.group, 0)
        return x.movedim((image, self.group), (0, 1))


@dataclass(frozen=True)
class Replacement:
    """What is replaced in a pass: one group of one image, of all images, or one whole image."""

    group: int | None  # None: the pixels of an image, on which all of its groups depend
    image: int | None  # None: the queries of the group in all images


@dataclass(frozen=True)
class Change:
    """The largest absolute changes of an output, after something was replaced."""

    own: float  # of what was replaced
    other_groups: float
    other_images: float  # of the same group in other images

    @property
    def of_others(self) -> float:
        """The change of everything that must not change."""
        return max(self.other_groups, self.other_images)


def find_axes(
    shape: Sequence[int], sizes: GroupSizes, num_images: int | None = None
) -> list[QueryAxes]:
    """Return all axes of a tensor that may be the groups, and the images if their number is given.

    There are several if the sizes of axes are equal by chance.
    """
    groups = []
    for axis, size in enumerate(shape):
        if size == sizes.total:
            groups.append(QueryAxes(axis, is_flat=True))
        # N is another axis then, such as that of [B,K,N,.] or [K,B,N,.].
        others = [*shape[:axis], *shape[axis + 1 :]]
        if size == sizes.num_groups and sizes.num_queries in others:
            groups.append(QueryAxes(axis, is_flat=False))
    if num_images is None:
        return groups
    with_images = []
    for axes in groups:
        for axis, size in enumerate(shape):
            if size == num_images and axis != axes.group:
                with_images.append(QueryAxes(axes.group, axes.is_flat, axis))
    return with_images


def find_input_axes(shape: Sequence[int], sizes: GroupSizes) -> QueryAxes | None:
    """Return the axes of queries as decoders take them, None for a tensor of another shape.

    They are [B,K*N,.], [K*N,B,.] or [B,K,N,.], of two images or more.
    """
    if len(shape) >= 4 and tuple(shape[1:3]) == (sizes.num_groups, sizes.num_queries):
        axes = QueryAxes(1, is_flat=False, image=0)
    elif len(shape) >= 3 and shape[1] == sizes.total:
        axes = QueryAxes(1, is_flat=True, image=0)
    elif len(shape) >= 3 and shape[0] == sizes.total:
        axes = QueryAxes(0, is_flat=True, image=1)
    else:
        return None
    assert axes.image is not None
    return axes if shape[axes.image] >= 2 else None


def find_row_axes(shape: Sequence[int], num_groups: int) -> QueryAxes | None:
    """Return the axes of a parameter that may be queries, None for one of another shape.

    It is [K,N,.] or [K*N,.], also with axes of one row, as [1,K*N,.] or [K*N,1,.].
    """
    if len(shape) < 2:
        return None
    # Axes of one row in front are no groups.
    axis = 0
    while axis < len(shape) - 2 and shape[axis] == 1:
        axis += 1
    if len(shape) - axis >= 3 and shape[axis] == num_groups:
        return QueryAxes(axis, is_flat=False)
    if shape[axis] % num_groups == 0:
        return QueryAxes(axis, is_flat=True)
    return None


def replace_group(
    x: Tensor, axes: QueryAxes, num_groups: int, group: int, image: int | None = None
) -> Tensor:
    """Return a copy of queries with other values in one group, of one image if it is given."""
    changed = x.clone()
    index = group if image is None else (image, group)
    # Both are views, so the values are written to the copy.
    axes.split(changed, num_groups)[index] = axes.split(other_values(x), num_groups)[index]
    return changed


def other_values(x: Tensor) -> Tensor:
    """Return random values that differ from those of queries, the same ones in every call.

    Values within [0,1] stay within it, so they remain valid points and boxes.
    """
    generator = torch.Generator().manual_seed(0)
    if bool(((x >= 0) & (x <= 1)).all()):
        return torch.rand(x.shape, generator=generator).to(x)
    return x + torch.randn(x.shape, generator=generator).to(x)


def measure_change(
    before: Tensor, after: Tensor, sizes: GroupSizes, replaced: Replacement, num_images: int
) -> Change | None:
    """Return how much an output has changed, None if it has no axis of groups, or none of images.

    Where several axes may be the groups or the images, those with the smallest change of others are
    taken. The true axes are among them, and for others, the change of the group itself counts as a
    change of others.
    """
    difference = absolute_difference(before, after)
    images = None if replaced.image is None else num_images
    changes = []
    for axes in find_axes(before.shape, sizes, images):
        parts = axes.split(difference, sizes.num_groups)
        if replaced.image is None:
            # [K,...] -> [1,K]: there are no other images.
            largest = parts.flatten(1).amax(-1)[None]
        else:
            largest = parts.flatten(2).amax(-1)  # [B,K]
        image = replaced.image or 0
        is_image = torch.arange(len(largest), device=largest.device)[:, None] == image
        is_group = torch.ones_like(largest[:1], dtype=torch.bool)
        if replaced.group is not None:
            is_group = torch.arange(sizes.num_groups, device=largest.device)[None] == replaced.group
        own = largest.where(is_image & is_group, 0.0)
        other_images = largest.where(~is_image & is_group, 0.0)
        other_groups = largest.where(~is_group, 0.0)
        changes.append(
            Change(float(own.max()), float(other_groups.max()), float(other_images.max()))
        )
    return min(changes, key=lambda change: change.of_others) if changes else None


def absolute_difference(before: Tensor, after: Tensor) -> Tensor:
    """Return the absolute difference of two tensors.

    It is zero where both are equal, also where both are infinite. It is infinite where one of them
    is NaN: a maximum of several differences would leave NaN out, because comparisons with it are
    false.
    """
    difference = (before - after).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    return torch.where(before == after, torch.zeros_like(difference), difference)
