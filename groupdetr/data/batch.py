"""From a split on disk to batches: which pictures a step takes, how they are loaded, and how they are put together.

Training is one endless stream of pictures, epoch after epoch, each shuffled by (seed, epoch). Step s takes a fixed
piece of it, and the augmentation of a picture depends on (seed, epoch, picture) alone. So a run can be continued at
any step, with any number of workers or processes, and sees the same data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from groupdetr.data.coco import Record
from groupdetr.data.images import load_pixels
from groupdetr.data.records import Ints
from groupdetr.data.segmentations import Shape
from groupdetr.data.transforms import Transform, View
from groupdetr.errors import GroupDETRError
from groupdetr.ops.boxes import xyxy_to_cxcywh
from groupdetr.structures.images import Images
from groupdetr.structures.masks import Bitmaps
from groupdetr.structures.targets import Target

MEAN, DEVIATION = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # ImageNet's, in which all backbones were trained


@dataclass
class Batch:
    """Pictures as the loader hands them over: bytes still, four times smaller than floats on the way."""

    pixels: Tensor  # [B,3,H,W] uint8, channels last in memory: as pictures are decoded and resized
    sizes: Tensor  # [B,2] int64: height and width of each picture; the rest is padding
    targets: list[Target]
    indices: list[int]  # of the records

    def images(self, device: torch.device) -> Images:
        """On the device and normalised; padding is zero after that, as in training of all published weights."""
        pixels, sizes = (x.to(device, non_blocking=True) for x in (self.pixels, self.sizes))
        return normalised(pixels, outside(sizes, pixels.shape[-2:]), self.padded)

    @property
    def padded(self) -> bool:
        """Is any picture smaller than the batch? Asked of the host, so no GPU is waited for."""
        return bool((self.sizes != torch.tensor(self.pixels.shape[-2:])).any())

    def pin_memory(self) -> Batch:
        """All of it, so that no copy to a GPU is waited for."""
        targets = [target.mapped(Tensor.pin_memory) for target in self.targets]
        return Batch(self.pixels.pin_memory(), self.sizes.pin_memory(), targets, self.indices)

    def __getstate__(self) -> dict[str, Any]:
        """From a worker pixels travel as shared memory. That is a file for each tensor: too dear for small ones."""
        return {
            **vars(self),
            "sizes": self.sizes.numpy(),
            "targets": [*map(_to_arrays, self.targets)],
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        targets = [_from_arrays(*arrays) for arrays in state["targets"]]
        vars(self).update({**state, "sizes": torch.from_numpy(state["sizes"]), "targets": targets})


def _to_arrays(target: Target) -> tuple[NDArray[Any], ...]:
    masks = (
        () if target.masks is None else (target.masks.pixels.numpy(), target.masks.windows.numpy())
    )
    return target.labels.numpy(), target.boxes.numpy(), *masks


def _from_arrays(*arrays: NDArray[Any]) -> Target:
    labels, boxes, *masks = map(torch.from_numpy, arrays)
    return Target(labels, boxes, Bitmaps(*masks) if masks else None)


def outside(sizes: Tensor, shape: Sequence[int]) -> Tensor:
    """Where pictures of ``sizes`` [B,2] leave an area of ``shape`` (H, W) empty: [B,H,W] bool."""
    below, beside = (
        torch.arange(n, device=sizes.device) >= sizes[:, i, None] for i, n in enumerate(shape)
    )
    return below[:, :, None] | beside[:, None, :]


def normalised(pixels: Tensor, padding: Tensor, padded: bool = True) -> Images:
    """Bytes [B,3,H,W] to `Images`."""
    mean, deviation = (
        pixels.new_tensor(x, dtype=torch.float32).view(3, 1, 1) for x in (MEAN, DEVIATION)
    )
    floats = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    return Images(
        floats.div_(255).sub_(mean).div_(deviation).masked_fill_(padding[:, None], 0.0),
        padding,
        padded,
    )


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


def collate(samples: Sequence[tuple[Tensor, Target, int]]) -> Batch:
    """Pictures padded with zeros to the largest of the batch, and what belongs to them."""
    pictures, targets, indices = zip(*samples)
    sizes = torch.tensor([picture.shape[1:] for picture in pictures])
    pixels = block(len(pictures), *sizes.amax(0).tolist())
    for place, picture, (height, width) in zip(pixels, pictures, sizes.tolist()):
        place[:, :height, :width] = picture
        place[:, :height, width:] = 0
        place[:, height:] = 0
    return Batch(pixels, sizes, list(targets), list(indices))


def block(pictures: int, height: int, width: int) -> Tensor:
    """[B,3,H,W] uint8 to be written, channels last. In a worker it is shared with the training: no copy on the way."""
    count = pictures * height * width * 3
    storage = (
        torch.UntypedStorage._new_shared(count)
        if get_worker_info()
        else torch.UntypedStorage(count)
    )
    flat = torch.empty(0, dtype=torch.uint8).set_(storage)
    return flat.view(pictures, height, width, 3).permute(0, 3, 1, 2)


class Pictures(Dataset[tuple[Tensor, Target, int]]):
    """The records of a split as (picture [3,H,W] uint8, target, index).

    Decoded pictures are kept in memory up to ``cache_bytes`` in each worker.
    """

    collate = staticmethod(collate)

    def __init__(
        self, records: Sequence[Record], transform: Transform, seed: int = 0, cache_bytes: int = 0
    ) -> None:
        self.records, self.transform, self.seed = records, transform, seed
        self.cache_bytes, self.cache = cache_bytes, dict[int, Tensor]()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def kept(self) -> int:
        """Bytes of decoded pictures that each worker comes to keep, at most."""
        return min(
            self.cache_bytes, sum(3 * record.width * record.height for record in self.records)
        )

    def __getitem__(self, draw: Draw | int) -> tuple[Tensor, Target, int]:
        draw = Draw(0, draw) if isinstance(draw, int) else draw
        seed = np.random.SeedSequence((self.seed, draw.epoch, draw.index)).generate_state(1)[0]
        return (*self.transformed(draw.index, torch.Generator().manual_seed(int(seed))), draw.index)

    def transformed(self, index: int, generator: torch.Generator) -> tuple[Tensor, Target]:
        recorded, labels = self.records[index].training()
        view = self.transform(View(self.decoded(index), recorded.astype(np.float32)), generator)
        height, width = view.size
        side = np.array([width, height, width, height], dtype=np.float32)
        corners = view.boxes.clip(0, side)
        kept = np.flatnonzero(
            (corners[:, 2:] > corners[:, :2]).all(1)
        )  # DETR's rule: what a crop left with an area
        masks = None
        if (shapes := self.records[index].outlines()) is not None:
            kept, masks = drawn(shapes, kept, view)
        boxes = xyxy_to_cxcywh(torch.from_numpy(corners[kept])) / torch.from_numpy(side)
        return view.picture, Target(torch.from_numpy(labels[kept]), boxes, masks)

    def decoded(self, index: int) -> Tensor:
        """[3,H,W], channels last in memory."""
        if index not in self.cache:
            record = self.records[index]
            picture = channels_first(load_pixels(record.path, (record.width, record.height)))
            if self.cache_bytes < picture.nbytes:
                return picture
            self.cache_bytes -= picture.nbytes
            self.cache[index] = picture
        return self.cache[index]


def drawn(shapes: Sequence[Shape], rows: Ints, view: View) -> tuple[Ints, Bitmaps]:
    """Those of the ``rows`` whose shape has a pixel in the view, and their masks."""
    every = {row: shapes[row].drawn(view.placement, view.size) for row in rows.tolist()}
    seen = {row: mask for row, mask in every.items() if mask.pixels.any()}
    pixels = np.concatenate(
        [*(mask.pixels.ravel() for mask in seen.values()), np.zeros(1, dtype=bool)]
    )
    windows = np.array([mask.window for mask in seen.values()], dtype=np.int64).reshape(-1, 4)
    masks = Bitmaps(torch.from_numpy(pixels.view(np.uint8)), torch.from_numpy(windows))
    return np.array([*seen], dtype=np.int64), masks


def channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    """[H,W,3] as [3,H,W], without moving a byte."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def training_loader(pictures: Any, stream: Stream, workers: int) -> DataLoader[Any]:
    """Batches, as `Stream` says."""
    return _loader(pictures, stream, workers)


@lru_cache(maxsize=1)
def ordered_loader(pictures: Any, indices: range, batch: int, workers: int) -> DataLoader[Any]:
    """Batches of pictures ``indices`` in that order, for evaluation.

    The next evaluation gets the same loader and finds its workers waiting: where they are not forked, each takes
    seconds to start.
    """
    pieces = [list(indices[i : i + batch]) for i in range(0, len(indices), batch)]
    return _loader(pictures, pieces, workers, persistent_workers=workers > 0)


def _loader(
    pictures: Any, batches: Iterable[list[Any]], workers: int, **options: Any
) -> DataLoader[Any]:
    return Loader(
        Whole(pictures),
        batch_sampler=batches,
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=one_thread,
        pin_memory=torch.cuda.is_available(),
        **options,
    )


class Loader(DataLoader[Any]):
    """Batches of `Whole`; an error that a worker came to is raised here."""

    def __iter__(self) -> Any:
        return map(_or_raised, super().__iter__())


@dataclass
class Whole(Dataset[Any]):
    """A data set by the batch. Errors that a user can act on are handed over like batches: of one that is raised in a
    worker torch makes another, of a page of text."""

    pictures: Any

    def __getitems__(self, draws: list[Any]) -> Any:
        try:
            return self.pictures.collate([self.pictures[draw] for draw in draws])
        except GroupDETRError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _or_raised(batch: Any) -> Any:
    if isinstance(batch, GroupDETRError):
        raise batch
    return batch


def one_thread(worker: int) -> None:
    """Workers are the parallelism; their own threads would only fight the training's."""
    del worker
    torch.set_num_threads(1)


def to_pixels(picture: Image.Image, transform: Transform) -> Tensor:
    """A picture that was not read through a data set, as validation sees it: [3,H,W] uint8."""
    pixels = channels_first(np.array(picture.convert("RGB")))
    return transform(View(pixels, np.empty((0, 4), dtype=np.float32)), torch.Generator()).picture
