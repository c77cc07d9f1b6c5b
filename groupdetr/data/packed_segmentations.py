"""Segmentations of a whole file in a few arrays, from which single ones are made when needed.

The polygons of COCO's train images are 40 million numbers. As one array for each polygon they
would take several times the memory of the numbers, and every process that loads images would have
its own copy of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

from groupdetr.data.segmentations import Polygons, RunLengths, Segmentation

# Most tools write two decimals. A multiple of 1/100 is stored as a whole number of four bytes:
# dividing it by 100 gives the same float that reading the decimals gives, because both are rounded
# to the nearest float.
_DECIMALS = 100.0
_LARGEST = 2**31 - 1
Coordinates = NDArray[np.float64] | NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class PackedSegmentations(Sequence[Segmentation]):
    """A sequence of T segmentations. A slice of it is a view of the same arrays."""

    # [T,2] the first part of each polygon and the part after its last; run lengths with the number
    # n have (-1 - n, 0).
    spans: NDArray[np.int64]
    part_ends: NDArray[np.int64]  # [P+1] 0, then the index in ``coordinates`` after each part
    coordinates: Coordinates  # x, y, x, y...; int32 are hundredths
    count_ends: NDArray[np.int64]  # [R+1] 0, then the index in ``counts`` after each run lengths
    counts: NDArray[np.uint8]  # compressed run lengths, one after the other
    run_sizes: NDArray[np.int64]  # [R,2] height and width of their images

    def __len__(self) -> int:
        return len(self.spans)

    @overload
    def __getitem__(self, index: int) -> Segmentation: ...

    @overload
    def __getitem__(self, index: slice) -> PackedSegmentations: ...

    def __getitem__(self, index: int | slice) -> Segmentation | PackedSegmentations:
        if isinstance(index, slice):
            return replace(self, spans=self.spans[index])
        first, end = self.spans[index].tolist()
        if first < 0:
            return self._run_lengths(-1 - first)
        ends = self.part_ends[first : end + 1].tolist()
        numbers = _as_floats(self.coordinates[ends[0] : ends[-1]])
        parts = [
            numbers[start - ends[0] : stop - ends[0]].reshape(-1, 2)
            for start, stop in pairwise(ends)
        ]
        return Polygons(tuple(parts))

    def __iter__(self) -> Iterator[Segmentation]:
        return (self[row] for row in range(len(self)))

    def rows(self, index: NDArray[np.integer]) -> PackedSegmentations:
        """Return the segmentations ``index`` [R], in that order. No coordinate is copied."""
        return replace(self, spans=self.spans[index])

    def are_fractions(self) -> bool:
        """True if there are polygons and no coordinate is larger than 1."""
        largest = 1 if self.coordinates.dtype == np.float64 else _DECIMALS
        return len(self.coordinates) > 0 and bool(self.coordinates.max() <= largest)

    def _run_lengths(self, number: int) -> RunLengths:
        first, end = self.count_ends[number : number + 2].tolist()
        height, width = self.run_sizes[number].tolist()
        return RunLengths(self.counts[first:end].tobytes(), (height, width))


class SegmentationPacker:
    """Collects segmentations one after the other."""

    def __init__(self) -> None:
        self._spans: list[NDArray[np.int64]] = []
        self._part_lengths: list[NDArray[np.int64]] = []
        self._num_parts = 0
        self._coordinates: list[Coordinates] = []
        self._counts: list[bytes] = []
        self._run_sizes: list[tuple[int, int]] = []

    def add(self, segmentation: Segmentation) -> None:
        """Add one segmentation."""
        if isinstance(segmentation, RunLengths):
            self._spans.append(np.array([[-1 - len(self._counts), 0]]))
            self._counts.append(segmentation.counts)
            self._run_sizes.append(segmentation.size)
        else:
            lengths = [part.size for part in segmentation.parts]
            numbers = np.concatenate([part.ravel() for part in segmentation.parts])
            self.add_polygons(np.array([len(lengths)]), np.array(lengths), numbers)

    def add_polygons(
        self,
        num_parts: NDArray[np.int64],
        part_lengths: NDArray[np.int64],
        coordinates: NDArray[np.float64],
    ) -> None:
        """Add T polygons of ``num_parts`` [T] parts with ``part_lengths`` numbers each."""
        ends = self._num_parts + num_parts.cumsum()
        self._spans.append(np.stack([ends - num_parts, ends], axis=1))
        self._num_parts = int(ends[-1])
        self._part_lengths.append(part_lengths)
        self._coordinates.append(_as_hundredths(coordinates))

    def packed(self) -> PackedSegmentations:
        """Return all segmentations that were added."""
        coordinates: Coordinates = np.zeros(0, dtype=np.int32)
        if any(numbers.dtype != np.int32 for numbers in self._coordinates):
            coordinates = np.concatenate([_as_floats(numbers) for numbers in self._coordinates])
        elif self._coordinates:
            coordinates = np.concatenate(self._coordinates).astype(np.int32, copy=False)
        return PackedSegmentations(
            np.concatenate([np.zeros((0, 2), dtype=np.int64), *self._spans]),
            _ends(self._part_lengths),
            coordinates,
            _ends([np.array([len(counts) for counts in self._counts], dtype=np.int64)]),
            np.frombuffer(b"".join(self._counts), dtype=np.uint8),
            np.array(self._run_sizes, dtype=np.int64).reshape(-1, 2),
        )


def _ends(lengths: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return 0, and the sum of all lengths up to each one."""
    return np.concatenate([np.zeros(1, dtype=np.int64), *lengths]).cumsum()


def _as_hundredths(numbers: NDArray[np.float64]) -> Coordinates:
    """Return numbers as int32 hundredths if that keeps every bit of them, else as they are."""
    hundredths = np.rint(numbers * _DECIMALS)
    if len(numbers) and np.abs(hundredths).max() > _LARGEST:
        return numbers
    packed = hundredths.astype(np.int32)
    # Compared as bits, because -0.0 equals 0.0.
    is_exact = _as_floats(packed).view(np.int64) == numbers.view(np.int64)
    return packed if is_exact.all() else numbers


def _as_floats(numbers: Coordinates) -> NDArray[np.float64]:
    return numbers / _DECIMALS if numbers.dtype == np.int32 else numbers.astype(np.float64)
