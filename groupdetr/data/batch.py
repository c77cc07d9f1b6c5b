"""From a split on disk to batches: which pictures a step takes, how they are loaded, and how they are put together.

Training is one endless stream of pictures, epoch after epoch, each shuffled by (seed, epoch). Step s takes a fixed
piece of it, and the augmentation of a picture depends on (seed, epoch, picture) alone. So a run can be continued at
any step, with any number of workers or processes, and sees the same data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from groupdetr.data.coco import Record
from groupdetr.data.images import load_image
from groupdetr.ops.boxes import xyxy_to_cxcywh
from groupdetr.structures import Images, Target

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, in which all backbones were trained


@dataclass
class Batch:
    """Pictures as the loader hands them over: bytes still, four times smaller than floats on the way."""

    pixels: Tensor  # [B,3,H,W] uint8
    padding: Tensor  # [B,H,W] bool
    targets: list[Target]
    indices: list[int]  # of the records

    def images(self, device: torch.device) -> Images:
        """On the device and normalised; padding is zero after that, as in training of all published weights."""
        return normalised(self.pixels.to(device, non_blocking=True), self.padding.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        return Batch(self.pixels.pin_memory(), self.padding.pin_memory(), self.targets, self.indices)


def normalised(pixels: Tensor, padding: Tensor) -> Images:
    """Bytes [B,3,H,W] to `Images`."""
    mean, deviation = (pixels.new_tensor(x, dtype=torch.float32).view(3, 1, 1) for x in (MEAN, DEVIATION))
    floats = (pixels.float() / 255 - mean) / deviation
    return Images(floats.masked_fill(padding[:, None], 0.0), padding)


@dataclass(frozen=True)
class Draw:
    """One picture of the stream."""

    epoch: int
    index: int


class Stream(Sampler[list[Draw]]):
    """The batches of one process: for every step from ``start``, ``accumulate`` lists of ``batch`` / (ranks x
    accumulate) pictures. Ranks take turns, so that all processes together see what one would."""

    def __init__(self, num_images: int, batch: int, seed: int, start: int, stop: int) -> None:
        self.num_images, self.batch, self.seed = num_images, batch, seed
        self.start, self.stop = start, stop
        self.rank, self.ranks, self.accumulate = 0, 1, 1

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start, self.stop):
            draws = []
            for place in range(step * self.batch, (step + 1) * self.batch):
                if place // self.num_images != epoch:
                    epoch = place // self.num_images
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.num_images)
                draws.append(Draw(epoch, int(order[place % self.num_images])))
            mine = draws[self.rank :: self.ranks]
            size = len(mine) // self.accumulate
            yield from (mine[i * size : (i + 1) * size] for i in range(self.accumulate))


class Pictures(Dataset[tuple[Tensor, Target, int]]):
    """The records of a split as (picture [3,H,W] uint8, target, index). ``transform`` gets picture, boxes and labels.

    Decoded pictures are kept in memory up to ``cache_bytes`` in each worker.
    """

    def __init__(
        self, records: Sequence[Record], transform: Callable[[Any], Any], seed: int = 0, cache_bytes: int = 0
    ) -> None:
        self.records, self.transform, self.seed = records, transform, seed
        self.cache_bytes, self.cache = cache_bytes, dict[int, Tensor]()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw | int) -> tuple[Tensor, Target, int]:
        draw = Draw(0, draw) if isinstance(draw, int) else draw
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence((self.seed, draw.epoch, draw.index)).generate_state(1)[0]))
            return (*self.transformed(draw.index), draw.index)

    def transformed(self, index: int) -> tuple[Tensor, Target]:
        recorded, labels = self.records[index].training()
        picture = self.decoded(index)
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(recorded.astype(np.float32)),
            format="XYXY",
            canvas_size=(picture.shape[1], picture.shape[2]),
        )
        sample = {"image": picture, "boxes": boxes, "labels": torch.from_numpy(labels)}
        sample = self.transform(sample)
        height, width = sample["image"].shape[1:]
        side = torch.tensor([width, height, width, height])
        corners = sample["boxes"].as_subclass(Tensor).clamp(min=0).minimum(side)
        kept = (corners[:, 2:] > corners[:, :2]).all(1)  # DETR's rule: whatever a crop left with an area
        target = Target(sample["labels"][kept], xyxy_to_cxcywh(corners[kept]) / side)
        return sample["image"].as_subclass(Tensor), target

    def decoded(self, index: int) -> tv_tensors.Image:
        if index not in self.cache:
            record = self.records[index]
            picture = F.pil_to_tensor(load_image(record.path, (record.width, record.height)))
            if self.cache_bytes < picture.nbytes:
                return tv_tensors.Image(picture)
            self.cache_bytes -= picture.nbytes
            self.cache[index] = picture
        return tv_tensors.Image(self.cache[index])


def collate(samples: Sequence[tuple[Tensor, Target, int]]) -> Batch:
    """Pictures padded to the largest of the batch, and what belongs to them."""
    pictures, targets, indices = zip(*samples)
    images = Images.from_list(pictures)
    return Batch(images.pixels, images.padding, list(targets), list(indices))


def training_loader(pictures: Pictures, stream: Stream, workers: int) -> DataLoader[Any]:
    """Batches, as `Stream` says."""
    return DataLoader(
        pictures, batch_sampler=stream, collate_fn=collate, num_workers=workers, pin_memory=torch.cuda.is_available(),
        worker_init_fn=one_thread,
    )  # fmt: skip


def ordered_loader(pictures: Pictures, indices: Sequence[int], batch: int, workers: int) -> DataLoader[Any]:
    """Batches of pictures ``indices`` in that order, for evaluation."""
    pieces = [list(indices[i : i + batch]) for i in range(0, len(indices), batch)]
    return DataLoader(
        pictures, batch_sampler=pieces, collate_fn=collate, num_workers=workers, worker_init_fn=one_thread
    )  # fmt: skip


def one_thread(worker: int) -> None:
    """Workers are the parallelism; their own threads would only fight the training's."""
    del worker
    torch.set_num_threads(1)


def to_pixels(picture: Image.Image, imgsz_transform: Callable[[Any], Any]) -> Tensor:
    """A picture that was not read through a data set, as validation sees it: [3,H,W] uint8."""
    return imgsz_transform(tv_tensors.Image(F.pil_to_tensor(picture.convert("RGB")))).as_subclass(Tensor)
