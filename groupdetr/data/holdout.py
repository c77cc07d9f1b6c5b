"""Divides one split into train and val, so that both have the same share of every class.

Images have objects of several classes, so the division is greedy, from the rarest class to the most
frequent one, as in Sechidis et al., "On the Stratification of Multi-label Data", 2011.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from groupdetr.data.records import Bools, CocoSplit, Ints, ObjectColumns, select_records

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def split_holdout(split: CocoSplit, fraction: float, seed: int) -> tuple[CocoSplit, CocoSplit]:
    """Divide a split into train and val.

    ``fraction`` of the images becomes val: at least one, and never all. Val gets about ``fraction``
    of the images of each class, and of the images without objects. Train keeps an image of each
    class, as long as there are other images to choose. The same seed selects the same images.
    """
    total = len(split.records)
    num_val = min(max(1, round(fraction * total)), max(total - 1, 0))
    order = np.random.default_rng(seed).permutation(total)
    is_val = select_stratified(_classes_of_images(split), num_val, order)
    train = select_records(split.records, ~is_val)
    val = select_records(split.records, is_val)
    return replace(split, name="train", records=train), replace(split, name="val", records=val)


def _classes_of_images(split: CocoSplit) -> csr_array:
    """Return which classes each image has, [I,C+1] of 0 and 1. The last class is "no object"."""
    from scipy import sparse  # which takes long to import, and few commands divide a dataset

    objects = ObjectColumns.from_records(split.records)
    shape = (len(split.records), len(split.categories) + 1)
    image = np.repeat(np.arange(shape[0]), objects.counts)
    without = np.flatnonzero(objects.counts == 0)
    no_object = np.full(len(without), shape[1] - 1)
    image, label = np.concatenate([image, without]), np.concatenate([objects.labels, no_object])
    # One entry for each pair of an image and a class, sorted by image and then by class.
    row, column = np.divmod(np.unique(image * shape[1] + label), shape[1])
    row_ends = np.searchsorted(row, np.arange(shape[0] + 1))
    return sparse.csr_array((np.ones(len(column), dtype=np.int64), column, row_ends), shape=shape)


def select_stratified(
    classes: csr_array, number: int, order: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Select ``number`` of I images, with about the same share of the images of each class: [I].

    ``classes`` [I,C] is 1 where an image has a class. Of equal images, the first one of ``order``
    [I], a permutation, is selected.
    """
    total = classes.shape[0]
    by_class = classes[order].tocsc()
    images_of_class = np.diff(by_class.indptr)
    # A class of two or more images shall be in both parts.
    target_counts = np.rint(images_of_class * (number / max(total, 1))).astype(np.int64)
    largest = (images_of_class - 1).clip(0)
    target_counts = target_counts.clip(np.minimum(1, largest), largest)
    selection = _Selection(classes, number, images_of_class)

    # The rarest class first, because it has the fewest images to choose from.
    for label in np.argsort(images_of_class, kind="stable").tolist():
        first, end = by_class.indptr[label : label + 2]
        candidates = order[by_class.indices[first:end]]
        candidates = candidates[~selection.selected[candidates]]
        # Images of classes that have enough already come last.
        surplus = classes[candidates] @ (selection.counts >= target_counts).astype(np.int64)
        for image in candidates[np.argsort(surplus, kind="stable")].tolist():
            if selection.counts[label] >= target_counts[label]:
                break
            selection.add(image)

    # The shares are reached, or more images would take the last one of a class. Fill up, if it
    # must be with such images, too.
    for may_take_last in (False, True):
        remaining = order[~selection.selected[order]]
        surplus = classes[remaining] @ (selection.counts >= target_counts).astype(np.int64)
        for image in remaining[np.argsort(surplus, kind="stable")].tolist():
            selection.add(image, may_take_last)
    return selection.selected


class _Selection:
    """The images that were selected so far, and the number of them that have each class."""

    def __init__(self, classes: csr_array, number: int, images_of_class: Ints) -> None:
        self.indices, self.indptr = classes.indices, classes.indptr
        self.remaining = number  # images that are still to be selected
        self.images_of_class = images_of_class  # [C]
        self.counts = np.zeros(len(images_of_class), dtype=np.int64)  # [C] of selected images
        self.selected: Bools = np.zeros(classes.shape[0], dtype=bool)  # [I]

    def add(self, image: int, may_take_last: bool = False) -> None:
        """Select an image, unless there are enough, or it is the last one left of a class."""
        labels = self.indices[self.indptr[image] : self.indptr[image + 1]]
        left = self.images_of_class[labels] - self.counts[labels]
        if self.remaining and (may_take_last or (left > 1).all()):
            self.selected[image] = True
            self.counts[labels] += 1
            self.remaining -= 1
