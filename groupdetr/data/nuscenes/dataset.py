"""The PyTorch dataset of nuScenes samples, and its batches.

A sample has the images of six cameras, or of two frames of six cameras, and 3D boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from groupdetr.data.dataset import SampleIndex
from groupdetr.data.image_decoding import load_pixels
from groupdetr.data.nuscenes.camera_frames import Frame
from groupdetr.data.nuscenes.names import CAMERAS
from groupdetr.data.nuscenes.samples import Sample
from groupdetr.data.nuscenes.transforms import (
    IMAGE_SIZE,
    Augment,
    Augmentation,
    ResizeCropFlip,
    no_augmentation,
)
from groupdetr.data.records import Floats
from groupdetr.errors import DataError
from groupdetr.ops.transfer import to_device
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.targets import Target

# PETRv2: the earlier frame of a training sample is drawn among those from index 3 up to index 27,
# 27 excluded. Index 0 is one image before the key frame, a twelfth of a second earlier.
FIRST_EARLIER_FRAME, LAST_EARLIER_FRAME = 3, 27
# In validation it is always the one in the middle, 1.25 s earlier.
VAL_EARLIER_FRAME = (FIRST_EARLIER_FRAME + LAST_EARLIER_FRAME) // 2 - 1
# Seconds. If there is no earlier frame, the key frame is used twice, and the second one counts as
# older by this time.
REPEATED_FRAME_AGE = 15 * 0.083

# Mean and standard deviation of bytes, in the order blue, green, red, as in PETR's code.
MEAN = (103.530, 116.280, 123.675)
STD = (57.375, 57.120, 58.395)


@dataclass(frozen=True)
class MultiViewSample:
    """One sample of V images. V is 6, or 12 with an earlier frame, whose images come last."""

    pixels: Tensor  # [V,3,H,W] uint8, channels last in memory
    lidar_to_image: Tensor  # [V,4,4] float64, to (u d, v d, d, 1) in pixels of these images
    # [V] float64, seconds from the image to the lidar: about 0 in the key frame, positive earlier
    ages: Tensor
    target: Target  # boxes [T,9] float32: centre x, y, z, width, length, height, yaw, velocity x, y
    index: int  # of the sample in the dataset

    @property
    def elapsed(self) -> float:
        """Seconds from the earlier frame to the key frame, averaged over cameras; 0 without one."""
        key_frame_ages = self.ages[: len(CAMERAS)]
        earlier_ages = self.ages[len(CAMERAS) :]
        if not len(earlier_ages):
            return 0.0
        return float((earlier_ages - key_frame_ages).mean())


@dataclass
class SceneBatch:
    """A batch of B samples from the data loader. Images are still bytes."""

    pixels: Tensor  # [B,V,3,H,W] uint8
    lidar_to_image: Tensor  # [B,V,4,4] float64
    elapsed: Tensor  # [B] seconds from the earlier frame to the key frame
    targets: list[Target]
    indices: list[int]  # of the samples in the dataset

    def images(self, device: torch.device) -> CameraImages:
        """Return the images on ``device``, normalised, in the order blue, green, red."""
        pixels = to_device(self.pixels, device)
        lidar_to_image = to_device(self.lidar_to_image, device)
        elapsed = to_device(self.elapsed, device)
        statistics = torch.tensor([MEAN, STD], dtype=torch.float32)
        mean, std = to_device(statistics.view(2, 3, 1, 1), pixels.device)
        normalised = (pixels.flip(2).float() - mean) / std
        return CameraImages.from_projections(normalised, lidar_to_image, elapsed)

    def pin_memory(self) -> SceneBatch:
        """Return the batch in pinned memory, so that copies to a GPU are asynchronous."""
        return SceneBatch(
            self.pixels.pin_memory(),
            self.lidar_to_image.pin_memory(),
            self.elapsed.pin_memory(),
            [target.map(Tensor.pin_memory) for target in self.targets],
            self.indices,
        )


def collate(samples: Sequence[MultiViewSample]) -> SceneBatch:
    """Stack samples into a batch."""
    return SceneBatch(
        torch.stack([sample.pixels for sample in samples]),
        torch.stack([sample.lidar_to_image for sample in samples]),
        torch.tensor([sample.elapsed for sample in samples], dtype=torch.float32),
        [sample.target for sample in samples],
        [sample.index for sample in samples],
    )


class SceneDataset(Dataset[MultiViewSample]):
    """The samples of a split. Random choices depend on (seed, epoch, index) only."""

    collate = staticmethod(collate)

    def __init__(
        self,
        samples: Sequence[Sample],
        size: tuple[int, int] = IMAGE_SIZE,
        augment: Augment | None = None,
        two_frames: bool = False,
        seed: int = 0,
    ) -> None:
        """Create a dataset for training or, if ``augment`` is None, for validation.

        ``size`` is the height and width of images. ``two_frames`` adds an earlier frame. In
        training, a sample without trainable objects is replaced by a random one that has some.
        `DataError` if no sample has any.
        """
        self.samples = samples
        self.size = size
        self.augment = augment
        self.two_frames = two_frames
        self.seed = seed
        # Indices of the samples to train on; None in validation.
        self.trainable_samples = None
        if augment is not None:
            has_objects = [sample.truth.trainable.any() for sample in samples]
            self.trainable_samples = np.flatnonzero(has_objects)
            if not len(self.trainable_samples):
                raise DataError(
                    "no sample has an object to train on",
                    remedy="annotate objects in the train split",
                )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: SampleIndex | int) -> MultiViewSample:
        if isinstance(index, int):
            index = SampleIndex(0, index)
        entropy = (self.seed, index.epoch, index.index)
        seed = np.random.SeedSequence(entropy).generate_state(1)[0]
        generator = Generator().manual_seed(int(seed))
        sample_index = self._with_objects(index.index, generator)
        augment = self.augment or no_augmentation
        augmentation = augment(generator)
        sample = self.samples[sample_index]
        frame, ages = self._frames_and_ages(sample, generator)
        pixels, lidar_to_image = load_augmented(frame, augmentation, self.size)
        return MultiViewSample(
            pixels,
            torch.from_numpy(lidar_to_image),
            torch.from_numpy(ages),
            create_target(sample, augmentation),
            sample_index,
        )

    def _with_objects(self, index: int, generator: Generator) -> int:
        """Return the index, or a random one if the sample has no object to train on."""
        if self.trainable_samples is None or self.samples[index].truth.trainable.any():
            return index
        draw = torch.randint(len(self.trainable_samples), (), generator=generator)
        return int(self.trainable_samples[draw])

    def _frames_and_ages(self, sample: Sample, generator: Generator) -> tuple[Frame, Floats]:
        """Return the V images of a sample, and their ages [V] in seconds."""
        key_frame = sample.frame()
        ages = key_frame.ages(sample.time)
        if not self.two_frames:
            return key_frame, ages
        num_earlier = len(sample.earlier_indices)
        if not num_earlier:
            return key_frame.cat(key_frame), np.concatenate([ages, ages + REPEATED_FRAME_AGE])
        if self.augment:
            index = draw_earlier_frame(num_earlier, generator)
        else:
            index = min(VAL_EARLIER_FRAME, num_earlier - 1)
        earlier = sample.earlier_frame(index)
        return key_frame.cat(earlier), np.concatenate([ages, earlier.ages(sample.time)])


def draw_earlier_frame(num_earlier: int, generator: Generator) -> int:
    """Draw the index of the earlier frame of a training sample: 3 to 26, as in PETRv2's code.

    If there are at most three earlier frames, it is the earliest one.
    """
    end = min(LAST_EARLIER_FRAME, num_earlier)
    if end <= FIRST_EARLIER_FRAME:
        return end - 1
    return int(torch.randint(FIRST_EARLIER_FRAME, end, (), generator=generator))


def load_augmented(
    frame: Frame, augmentation: Augmentation, size: tuple[int, int]
) -> tuple[Tensor, Floats]:
    """Return the augmented images [V,3,H,W] uint8 of a frame, and lidar_to_image [V,4,4]."""
    pixels = np.empty((len(frame.paths), *size, 3), dtype=np.uint8)
    transforms: list[ResizeCropFlip] = []
    for output, path, (width, height) in zip(pixels, frame.paths, frame.sizes.tolist()):
        transform = augmentation.image_transform((height, width), size)
        output[:] = transform.apply(load_pixels(path, (width, height)))
        transforms.append(transform)
    matrices = np.stack([transform.matrix() for transform in transforms])
    lidar_to_image = augmentation.transform_projections(matrices @ frame.lidar_to_image)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), lidar_to_image


def create_target(sample: Sample, augmentation: Augmentation) -> Target:
    """Return the objects to train on.

    As in PETR's code, an object must be in range before the world is rotated and scaled.
    `DataError` if a number is too large or too small for float32.
    """
    boxes, labels = sample.trainable_objects()
    with np.errstate(over="ignore"):
        augmented = augmentation.transform_boxes(boxes).astype(np.float32)
    try:
        return Target(torch.from_numpy(labels), torch.from_numpy(augmented))
    except ValueError as error:
        raise DataError(
            str(error), f"sample {sample.token}", "correct its annotations, or remove them"
        ) from error
