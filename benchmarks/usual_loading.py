"""The usual way to load pictures: Pillow, torchvision.transforms.v2, floats, padding. The draws are ours."""

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
from groupdetr.data.batch import DEVIATION, MEAN, Draw, Stream, channels_first, one_thread
from groupdetr.data.images import load_pixels
from groupdetr.data.records import Record
from groupdetr.data.transforms import CropBetween, ResizeShortest
from groupdetr.ops.boxes import xyxy_to_cxcywh
from groupdetr.structures.images import Images
from groupdetr.structures.targets import Target


class AsDrawn(v2.Transform):
    """One of torchvision's kernels, by its machinery, with ``names`` of its parameters as we draw them."""

    def __init__(
        self, kernel: Callable[..., Any], draw: Callable[..., Sequence[int]], *names: str
    ) -> None:
        super().__init__()
        self.kernel, self.draw, self.names = kernel, draw, names

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return dict(
            zip(self.names, self.draw(*v2.query_size(flat_inputs), torch.default_generator))
        )

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(self.kernel, inpt, **params)


def resize(rule: ResizeShortest) -> AsDrawn:
    return AsDrawn(F.resize, lambda *size: [rule.size(*size)], "size")


def crop(rule: CropBetween) -> AsDrawn:
    return AsDrawn(F.crop, rule.place, "top", "left", "height", "width")


def recipe(imgsz: int) -> v2.Transform:
    """DETR's, as `transforms.training` draws it."""
    flip: Any = transforms.training(imgsz)
    rule = flip.then
    last = resize(rule.then)
    cropped = v2.Compose([resize(rule.resize), crop(rule.crop), last])
    return v2.Compose([v2.RandomHorizontalFlip(), v2.RandomChoice([last, cropped])])


class Usual(Dataset[tuple[Tensor, Target, int]]):
    """Pillow's picture through v2, then floats, normalised; the draws are ours."""

    def __init__(self, records: Sequence[Record], imgsz: int, seed: int) -> None:
        self.records, self.seed, self.augment = records, seed, recipe(imgsz)
        floats = [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, DEVIATION),
        ]
        self.finish: Callable[[Any], Any] = v2.Compose(floats)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Target, int]:
        torch.manual_seed(
            int(np.random.SeedSequence((self.seed, draw.epoch, draw.index)).generate_state(1)[0])
        )
        record = self.records[draw.index]
        corners, labels = record.training()
        size = (record.height, record.width)
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(corners).float(), format="XYXY", canvas_size=size
        )
        picture, boxes, known = self.augment(self.picture(record), boxes, torch.from_numpy(labels))
        picture = self.finish(picture)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        height, width = picture.shape[1:]
        within = xyxy_to_cxcywh(boxes[kept].as_subclass(Tensor))
        target = Target(known[kept], within / torch.tensor([width, height, width, height]))
        return picture.as_subclass(Tensor), target, draw.index

    def picture(self, record: Record) -> Any:
        with Image.open(record.path) as image:
            return image.convert("RGB")


class OnTensors(Usual):
    """v2 on our tensors, bytes to the end."""

    def __init__(self, records: Sequence[Record], imgsz: int, seed: int) -> None:
        super().__init__(records, imgsz, seed)
        self.finish = lambda picture: picture

    def picture(self, record: Record) -> Any:
        return tv_tensors.Image(
            channels_first(load_pixels(record.path, (record.width, record.height)))
        )


def usual_collate(samples: Sequence[tuple[Tensor, Target, int]]) -> tuple[Images, list[Target]]:
    """One padded block of floats and its mask."""
    pictures, targets, _ = zip(*samples)
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    pixels, padding = (
        torch.zeros(len(pictures), 3, height, width),
        torch.ones(len(pictures), height, width).bool(),
    )
    for place, outside, picture in zip(pixels, padding, pictures):
        place[:, : picture.shape[1], : picture.shape[2]].copy_(picture)
        outside[: picture.shape[1], : picture.shape[2]] = False
    return Images(pixels, padding), list(targets)


def usual_loader(pictures: Usual, stream: Stream, workers: int) -> DataLoader[Any]:
    return DataLoader(
        pictures,
        batch_sampler=stream,
        collate_fn=usual_collate,
        num_workers=workers,
        worker_init_fn=one_thread,
    )
