"""The usual way to load images: Pillow, torchvision.transforms.v2, normalised floats, padding.

The random draws are those of our augmentation, so both ways return the same crops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from groupdetr.data import transforms
from groupdetr.data.dataset import SampleIndex, channels_first
from groupdetr.data.image_decoding import load_pixels
from groupdetr.data.loader import StepBatchSampler, prepare_worker
from groupdetr.data.records import Record
from groupdetr.data.transforms import RandomResize, RandomSizeCrop
from groupdetr.ops.boxes import xyxy_to_cxcywh
from groupdetr.structures.images import IMAGENET_MEAN, IMAGENET_STD, Images
from groupdetr.structures.targets import Target


class KernelWithOurDraws(v2.Transform):
    """A v2 transform that applies a torchvision kernel with parameters that our code draws.

    ``draw(height, width, generator)`` returns the values of the parameters ``names``.
    """

    def __init__(
        self, kernel: Callable[..., Any], draw: Callable[..., Sequence[Any]], *names: str
    ) -> None:
        super().__init__()
        self.kernel, self.draw, self.names = kernel, draw, names

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        values = self.draw(height, width, torch.default_generator)
        return dict(zip(self.names, values))

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(self.kernel, inpt, **params)


def resize(ours: RandomResize) -> v2.Transform:
    def draw(height: int, width: int, generator: torch.Generator) -> list[tuple[int, int]]:
        return [ours.size(height, width, generator)]

    return KernelWithOurDraws(F.resize, draw, "size")


def crop(ours: RandomSizeCrop) -> v2.Transform:
    return KernelWithOurDraws(F.crop, ours.window, "top", "left", "height", "width")


def usual_transform(imgsz: int) -> v2.Transform:
    """Return DETR's augmentation with the draws of `transforms.detr_transform`."""
    flip: Any = transforms.detr_transform(imgsz)
    select = flip.then
    final_resize = resize(select.then)
    resize_and_crop = v2.Compose([resize(select.resize), crop(select.crop), final_resize])
    return v2.Compose([v2.RandomHorizontalFlip(), v2.RandomChoice([final_resize, resize_and_crop])])


class UsualDataset(Dataset[tuple[Tensor, Target, int]]):
    """Images decoded by Pillow, augmented by v2, and normalised as floats."""

    def __init__(self, records: Sequence[Record], imgsz: int, seed: int) -> None:
        self.records, self.seed = records, seed
        self.augment = usual_transform(imgsz)
        self.to_floats: Callable[[Any], Any] = v2.Compose(
            [
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, sample_index: SampleIndex) -> tuple[Tensor, Target, int]:
        # The seed of our dataset, see `DetectionDataset.__getitem__`.
        entropy = (self.seed, sample_index.epoch, sample_index.index)
        seed = np.random.SeedSequence(entropy).generate_state(1)[0]
        torch.manual_seed(int(seed))

        record = self.records[sample_index.index]
        corners, labels = record.trainable_objects()
        size = (record.height, record.width)
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(corners).float(), format="XYXY", canvas_size=size
        )
        image, boxes, labels = self.augment(self.decode(record), boxes, torch.from_numpy(labels))
        image = self.to_floats(image)

        # Objects that the crop left without an area are dropped.
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
        height, width = image.shape[1:]
        side = torch.tensor([width, height, width, height])
        normalised_boxes = xyxy_to_cxcywh(boxes[has_area].as_subclass(Tensor)) / side
        target = Target(labels[has_area], normalised_boxes)
        return image.as_subclass(Tensor), target, sample_index.index

    def decode(self, record: Record) -> Any:
        with Image.open(record.path) as image:
            return image.convert("RGB")


class UsualDatasetOnBytes(UsualDataset):
    """The v2 transforms on the bytes that our decoder returns, which never become floats."""

    def __init__(self, records: Sequence[Record], imgsz: int, seed: int) -> None:
        super().__init__(records, imgsz, seed)
        self.to_floats = lambda image: image

    def decode(self, record: Record) -> Any:
        pixels = load_pixels(record.path, (record.width, record.height))
        return tv_tensors.Image(channels_first(pixels))


def usual_collate(samples: Sequence[tuple[Tensor, Target, int]]) -> tuple[Images, list[Target]]:
    """Return one padded batch of floats with its padding mask, and the targets."""
    images = [image for image, _, _ in samples]
    targets = [target for _, target, _ in samples]
    batch_height = max(image.shape[1] for image in images)
    batch_width = max(image.shape[2] for image in images)
    pixels = torch.zeros(len(images), 3, batch_height, batch_width)
    padding = torch.ones(len(images), batch_height, batch_width).bool()
    for i, image in enumerate(images):
        height, width = image.shape[1:]
        pixels[i, :, :height, :width].copy_(image)
        padding[i, :height, :width] = False
    return Images(pixels, padding), targets


def usual_loader(
    dataset: UsualDataset, sampler: StepBatchSampler, workers: int
) -> DataLoader[tuple[Tensor, Target, int]]:
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=usual_collate,
        num_workers=workers,
        worker_init_fn=prepare_worker,
    )
