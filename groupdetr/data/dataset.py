"""PyTorch dataset of images and targets: decode, augment, drop objects that the crop removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from groupdetr.data.batch import collate
from groupdetr.data.image_decoding import load_pixels
from groupdetr.data.mosaic import Mosaic
from groupdetr.data.records import Ints, Record
from groupdetr.data.sample import PlacedSegmentation, Sample, SampleTransform
from groupdetr.data.transforms import (
    AugmentedImage,
    RandomFlip,
    RandomResize,
    SquareResize,
    Transform,
)
from groupdetr.ops.boxes import xyxy_to_cxcywh
from groupdetr.structures.masks import CroppedMasks
from groupdetr.structures.targets import Target

STEP_TRANSFORMS = 2  # the number of this stream of random numbers, besides those of the images


@dataclass(frozen=True)
class SampleIndex:
    """Identifies one sample of a training: the epoch and the index of the image.

    ``step`` is the optimizer step that takes it, counted from 0. All images of a step may have a
    size that is drawn for the step.
    """

    epoch: int
    index: int
    step: int = 0


@dataclass(frozen=True)
class StepTransforms:
    """One transform for every step of a training, drawn at random, so that a batch has one size.

    The draw depends on (seed, step) alone. It is therefore the same in all processes and in all
    micro-batches of a step, and in a run that is resumed.
    """

    transforms: Sequence[Transform]
    seed: int

    def of_step(self, step: int) -> Transform:
        """Return the transform of all images of a step."""
        generator = np.random.default_rng((self.seed, step, STEP_TRANSFORMS))
        return self.transforms[int(generator.integers(len(self.transforms)))]


class DetectionDataset(Dataset[tuple[Tensor, Target, int]]):
    """The images of a split as samples (image [3,H,W] uint8, target, index).

    An image is transformed by the ``own_transform`` of a user and becomes a part of a ``mosaic``,
    if there are such; then follows ``transform``. The augmentation of a sample depends on (seed,
    epoch, index) alone, unless ``transform`` is a `StepTransforms`. Every worker keeps decoded
    images in memory up to ``cache_bytes``.
    """

    collate = staticmethod(collate)

    def __init__(
        self,
        records: Sequence[Record],
        transform: Transform | StepTransforms,
        seed: int = 0,
        cache_bytes: int = 0,
        mosaic: Mosaic | None = None,
        own_transform: SampleTransform | None = None,
    ) -> None:
        self.records = records
        self.transform = transform
        self.mosaic = mosaic
        self.own_transform = own_transform
        self.seed = seed
        self.free_cache_bytes = cache_bytes
        self.cache: dict[int, Tensor] = {}  # index -> decoded image

    def __len__(self) -> int:
        return len(self.records)

    @property
    def max_cache_bytes(self) -> int:
        """Bytes of decoded images that each worker will keep in memory at most.

        This is less than ``cache_bytes`` if all images together take less.
        """
        total = sum(3 * record.width * record.height for record in self.records)
        return min(self.free_cache_bytes, total)

    def __getitem__(self, index: SampleIndex | int) -> tuple[Tensor, Target, int]:
        """Return a sample. A plain int stands for an image of epoch 0."""
        sample_index = SampleIndex(0, index) if isinstance(index, int) else index
        generator = self.generator(sample_index)
        image, target = self.load(sample_index.index, generator, sample_index.step)
        return image, target, sample_index.index

    def generator(self, index: SampleIndex) -> torch.Generator:
        """Return the generator of all random numbers of a sample."""
        entropy = (self.seed, index.epoch, index.index)
        seed = np.random.SeedSequence(entropy).generate_state(1)[0]
        return torch.Generator().manual_seed(int(seed))

    @property
    def num_variants(self) -> int | None:
        """How many different images the augmentation makes of one: 1, or 2 if it only flips.

        It is None if all of its images may differ.
        """
        if self.mosaic is not None or self.own_transform is not None:
            return None
        is_flip = isinstance(self.transform, RandomFlip)
        resize = self.transform.then if isinstance(self.transform, RandomFlip) else self.transform
        if isinstance(resize, RandomResize):
            num_sizes = len(resize.sizes)
        elif isinstance(resize, SquareResize):
            num_sizes = len(resize.sides)
        else:
            return None
        if num_sizes > 1:
            return None
        return 2 if is_flip else 1

    def variant(self, index: SampleIndex) -> int:
        """Return which of `num_variants` a sample is: 0 for the image, 1 for the flipped image."""
        if self.num_variants == 1:
            return 0
        return int(RandomFlip.draw(self.generator(index)))

    def load(self, index: int, generator: torch.Generator, step: int = 0) -> tuple[Tensor, Target]:
        """Return the augmented image [3,H,W] and its target. ``step`` as in `SampleIndex`."""
        sample = self.transformed_sample(index, generator)
        if self.mosaic is not None:
            other = partial(self.transformed_sample, generator=generator)
            sample = self.mosaic(sample, other, len(self), generator)
        transform = self.transform
        if isinstance(transform, StepTransforms):
            transform = transform.of_step(step)
        augmented = transform(sample.image, generator)
        height, width = augmented.size
        side = np.array([width, height, width, height], dtype=np.float32)
        corners = augmented.boxes.clip(0, side)
        # As in DETR, objects that the crop left without an area are dropped.
        has_area = (corners[:, 2:] > corners[:, :2]).all(axis=1)
        rows = np.flatnonzero(has_area)
        masks = None
        if sample.segmentations is not None:
            rows, masks = rasterised_masks(sample.segmentations, rows, augmented)
        normalised_boxes = xyxy_to_cxcywh(torch.from_numpy(corners[rows])) / torch.from_numpy(side)
        labels = torch.from_numpy(sample.labels[rows])
        return augmented.image, Target(labels, normalised_boxes, masks)

    def transformed_sample(self, index: int, generator: torch.Generator) -> Sample:
        """Return an image with its objects after the transform of the user, if there is one."""
        sample = self.sample(index)
        return sample if self.own_transform is None else self.own_transform(sample, generator)

    def sample(self, index: int) -> Sample:
        """Return an image on disk with its objects, without any augmentation."""
        record = self.records[index]
        boxes, labels = record.trainable_objects()
        masks = record.object_masks()
        segmentations = None
        if masks is not None:
            # Polygons may reach out of the image. Without this window, they would cover the padding
            # of large-scale jitter.
            window = (0.0, 0.0, float(record.width), float(record.height))
            segmentations = tuple(PlacedSegmentation(mask, window=window) for mask in masks)
        image = AugmentedImage(self.decode(index), boxes.astype(np.float32))
        return Sample(image, labels, segmentations)

    def decode(self, index: int) -> Tensor:
        """Return the image on disk, [3,H,W] uint8, channels last in memory."""
        if index in self.cache:
            return self.cache[index]
        record = self.records[index]
        image = channels_first(
            load_pixels(record.path, (record.width, record.height), record.upright)
        )
        if image.nbytes <= self.free_cache_bytes:
            self.free_cache_bytes -= image.nbytes
            self.cache[index] = image
        return image


def rasterised_masks(
    segmentations: Sequence[PlacedSegmentation], rows: Ints, image: AugmentedImage
) -> tuple[Ints, CroppedMasks]:
    """Return the masks of the objects ``rows`` in an augmented image.

    Objects without a pixel in the image are dropped; the first result is the remaining rows.
    """
    remaining: list[int] = []
    masks = []
    for row in rows.tolist():
        mask = segmentations[row].rasterise(image.from_original, image.size)
        if mask.pixels.any():
            remaining.append(row)
            masks.append(mask)
    # `CroppedMasks` holds the windows one after the other and ends with one zero.
    flat = [mask.pixels.ravel() for mask in masks]
    pixels = np.concatenate([*flat, np.zeros(1, dtype=bool)])
    windows = np.array([mask.window for mask in masks], dtype=np.int64).reshape(-1, 4)
    cropped = CroppedMasks(torch.from_numpy(pixels.view(np.uint8)), torch.from_numpy(windows))
    return np.array(remaining, dtype=np.int64), cropped


def channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    """Return a view [3,H,W] of pixels [H,W,3]; the memory stays channels last."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def to_pixels(image: Image.Image, transform: Transform) -> Tensor:
    """Apply ``transform`` to an image that is in no dataset. Returns [3,H,W] uint8."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")  # it would copy RGB, too
    pixels = channels_first(np.array(rgb))
    no_boxes = np.empty((0, 4), dtype=np.float32)
    return transform(AugmentedImage(pixels, no_boxes), torch.Generator()).image
