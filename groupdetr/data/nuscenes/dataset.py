"""Samples as training and evaluation take them: pictures of six cameras, or of six now and six before, and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from groupdetr.data.batch import Draw
from groupdetr.data.images import load_pixels
from groupdetr.data.nuscenes.camera_frames import Frame
from groupdetr.data.nuscenes.names import CAMERAS
from groupdetr.data.nuscenes.samples import Sample
from groupdetr.data.nuscenes.transforms import IMGSZ, Augment, Augmentation, unchanged
from groupdetr.data.records import Floats
from groupdetr.errors import DataError
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.targets import Target

EARLIEST, LATEST = 3, 27  # pictures ago, between which an earlier frame is drawn in training
TESTED = (EARLIEST + LATEST) // 2 - 1  # and the one that is taken in a test: 1.25 s ago
REPEATED_AGE = (
    15 * 0.083
)  # seconds that the frame of now is made older by, where there is none before


@dataclass(frozen=True)
class MultiView:
    """One sample of V views. V is 6, or 12 with an earlier frame, which comes last."""

    pixels: Tensor  # [V,3,H,W] uint8, channels last in memory
    lidar_to_image: Tensor  # [V,4,4] float64, to (u d, v d, d, 1) in pixels of these pictures
    ages: Tensor  # [V] float64, seconds from the picture to the lidar: about 0 now, positive before
    target: Target  # boxes [T,9] float32: centre x, y, z, width, length, height, yaw, velocity x, y
    index: int  # of the sample

    @property
    def elapsed(self) -> float:
        """Seconds from the earlier frame to that of now, the mean over cameras; 0 of one frame."""
        now, before = self.ages[: len(CAMERAS)], self.ages[len(CAMERAS) :]
        return float((before - now).mean()) if len(before) else 0.0


MEAN, DEVIATION = (
    (103.530, 116.280, 123.675),
    (57.375, 57.120, 58.395),
)  # of bytes, blue first, as published


@dataclass
class Scenes:
    """Samples as the loader hands them over: bytes still."""

    pixels: Tensor  # [B,V,3,H,W] uint8
    lidar_to_image: Tensor  # [B,V,4,4] float64
    elapsed: Tensor  # [B] seconds from the earlier frame to that of now
    targets: list[Target]
    indices: list[int]  # of the samples

    def images(self, device: torch.device) -> CameraImages:
        """On the device and normalised, blue first."""
        pixels, matrices, elapsed = (
            x.to(device, non_blocking=True)
            for x in (self.pixels, self.lidar_to_image, self.elapsed)
        )
        mean, deviation = (
            pixels.new_tensor(x, dtype=torch.float32).view(3, 1, 1) for x in (MEAN, DEVIATION)
        )
        return CameraImages.seen_through(
            (pixels.flip(2).float() - mean) / deviation, matrices, elapsed
        )

    def pin_memory(self) -> Scenes:
        """All of it, so that no copy to a GPU is waited for."""
        pixels, matrices, elapsed = (
            x.pin_memory() for x in (self.pixels, self.lidar_to_image, self.elapsed)
        )
        targets = [target.mapped(Tensor.pin_memory) for target in self.targets]
        return Scenes(pixels, matrices, elapsed, targets, self.indices)


def collate(samples: Sequence[MultiView]) -> Scenes:
    """Samples side by side."""
    return Scenes(
        torch.stack([sample.pixels for sample in samples]),
        torch.stack([sample.lidar_to_image for sample in samples]),
        torch.tensor([sample.elapsed for sample in samples], dtype=torch.float32),
        [sample.target for sample in samples],
        [sample.index for sample in samples],
    )


class Views(Dataset[MultiView]):
    """The samples of a split. What is drawn of one depends on (seed, epoch, index) alone."""

    collate = staticmethod(collate)

    def __init__(
        self,
        samples: Sequence[Sample],
        size: tuple[int, int] = IMGSZ,
        augment: Augment | None = None,
        two_frames: bool = False,
        seed: int = 0,
    ) -> None:
        """``size``: height and width. ``augment``: what training does to a sample, None in a test. In training a sample
        without objects is replaced by another one; a `DataError` if none has any."""
        self.samples, self.size, self.two_frames, self.seed = samples, size, two_frames, seed
        self.augment = augment
        self.learnable = (
            np.flatnonzero([sample.truth.learned.any() for sample in samples]) if augment else None
        )
        if self.learnable is not None and not len(self.learnable):
            raise DataError(
                "no sample has an object to learn", remedy="annotate objects in the train split"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw | int) -> MultiView:
        draw = Draw(0, draw) if isinstance(draw, int) else draw
        seed = np.random.SeedSequence((self.seed, draw.epoch, draw.index)).generate_state(1)[0]
        generator = Generator().manual_seed(int(seed))
        index = self._with_objects(draw.index, generator)
        augmentation = (self.augment or unchanged)(generator)
        frame, ages = self._seen(self.samples[index], generator)
        pixels, matrices = placed(frame, augmentation, self.size)
        target = target_of(self.samples[index], augmentation)
        return MultiView(pixels, torch.from_numpy(matrices), torch.from_numpy(ages), target, index)

    def _with_objects(self, index: int, generator: Generator) -> int:
        if self.learnable is None or self.samples[index].truth.learned.any():
            return index
        return int(self.learnable[torch.randint(len(self.learnable), (), generator=generator)])

    def _seen(self, sample: Sample, generator: Generator) -> tuple[Frame, Floats]:
        """All views, and their ages in seconds."""
        now = sample.frame()
        ages = now.ages(sample.time)
        if not self.two_frames:
            return now, ages
        if not len(sample.earlier):
            return now.followed_by(now), np.concatenate([ages, ages + REPEATED_AGE])
        number = len(sample.earlier)
        before = sample.frame_before(
            drawn_earlier(number, generator) if self.augment else min(TESTED, number - 1)
        )
        return now.followed_by(before), np.concatenate([ages, before.ages(sample.time)])


def drawn_earlier(number: int, generator: Generator) -> int:
    """Which of ``number`` earlier frames is taken in training: one of 3 to 26, or the earliest of a few."""
    last = min(LATEST, number)
    return (
        int(torch.randint(EARLIEST, last, (), generator=generator)) if last > EARLIEST else last - 1
    )


def placed(
    frame: Frame, augmentation: Augmentation, size: tuple[int, int]
) -> tuple[Tensor, Floats]:
    """Pictures [V,3,H,W] uint8 and lidar_to_image [V,4,4], augmented."""
    crops = [augmentation.crop((height, width), size) for width, height in frame.sizes.tolist()]
    matrices = np.stack([crop.matrix() for crop in crops]) @ frame.lidar_to_image
    pixels = np.empty((len(crops), *size, 3), dtype=np.uint8)
    for place, crop, path, recorded in zip(pixels, crops, frame.paths, frame.sizes.tolist()):
        place[:] = crop.of(load_pixels(path, tuple(recorded)))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), augmentation.views(matrices)


def target_of(sample: Sample, augmentation: Augmentation) -> Target:
    """What is learned of a sample. Range is judged before the world is turned, as published."""
    boxes, labels = sample.objects()
    return Target(
        torch.from_numpy(labels), torch.from_numpy(augmentation.boxes(boxes).astype(np.float32))
    )
