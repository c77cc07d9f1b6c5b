"""Features of the training images that frozen parts compute once and a training reads again.

If the backbone is frozen, and no augmentation draws random numbers, an image has the same feature
maps in every epoch; if the encoder is frozen, too, it has the same memory. They are computed in
batches of the size of a micro-batch, as a training without the cache computes them.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count, cycle, islice, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groupdetr.console.progress import format_duration
from groupdetr.data.dataset import DetectionDataset, SampleIndex
from groupdetr.data.loader import training_loader
from groupdetr.engine.memory import format_bytes, usable_bytes
from groupdetr.engine.precision import tf32_of
from groupdetr.engine.task import Batch
from groupdetr.engine.training_plan import TrainingPlan
from groupdetr.errors import UsageError
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.encoders.encoder import Encoder
from groupdetr.modeling.frozen import is_frozen
from groupdetr.modeling.group_chunks import ChunkedModelWithLoss, ModelWithLoss
from groupdetr.ops.transfer import to_device, to_host
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import Images
from groupdetr.structures.memory import Memory
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.targets import Target

MEMORY_SHARE = 0.5  # of the usable memory that cached features may take; otherwise they are a file
LEAVE_OUT = "turn the cache off with --no-cache-features"


@dataclass
class CachedFeatures:
    """The feature maps of a batch of images, in place of the images themselves."""

    maps: list[Tensor]  # [B,C_l,H_l,W_l], from fine to coarse
    images: Images  # of which only the padding is used

    def __len__(self) -> int:
        return len(self.images)

    def memory(self, encoder: Encoder[Images]) -> Memory:
        """Return what the encoder computes from the feature maps."""
        memory: Memory = encoder(self.maps, self.images)
        return memory


@dataclass
class CachedMemory:
    """The encoded images of a batch, in place of the images themselves."""

    encoded: Memory

    def __len__(self) -> int:
        return len(self.encoded.tokens)

    def memory(self, _encoder: Encoder[Images]) -> Memory:
        """Return the encoded images."""
        return self.encoded


@dataclass
class CachedBatch:
    """A micro-batch whose images are those of the cache. It has what the trainer uses of a batch.

    ``cache`` is the cache of all images.
    """

    cache: FeatureCache
    indices: list[int]  # of the images in their dataset
    rows: list[int]  # of the cache
    targets: list[Target]

    def images(self, device: torch.device) -> CachedFeatures | CachedMemory:
        """Return the features of the images on ``device``."""
        rows = torch.tensor(self.rows)
        tensors = []
        for stored, order in zip(self.cache.stored, self.cache.orders):
            # Back to the order of the axes in memory, on which rounding may depend.
            tensors.append(to_device(stored[rows], device).permute(order))
        return self.cache.pack(tensors)


class FeatureCache:
    """The features of all training images, which are computed when it is created.

    ``dataset`` has them. With random flips, a flipped image has features of its own.
    ``log`` prints their size before they are computed. They are kept in memory, or in files in the
    folder of the run if they take more than half of the usable memory; the files are deleted at the
    end. `UsageError` if they fit nowhere, or if the images have different sizes.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        dataset: DetectionDataset,
        model: DetectionTransformer,
        log: Callable[[str], None],
    ) -> None:
        assert dataset.num_variants is not None
        self.plan = plan
        self.dataset = dataset
        self.model = model
        self.device = plan.accelerator.device
        self.num_rows = len(dataset) * dataset.num_variants
        self.targets: dict[int, Target] = {}
        # [rows,...] features of all images, with the axes in the order in which memory has them
        self.stored: list[Tensor] = []
        self.orders: list[tuple[int, ...]] = []  # the order of the axes of a batch of them
        self.input_shape: tuple[int, ...] = ()  # of the first batch
        self.example: Memory | None = None  # of the first batch, if the encoder is frozen
        started = time.monotonic()
        model.train()
        batches = self.all_samples()
        loader = training_loader(dataset, batches, plan.workers, self.device)
        for samples, batch in zip(batches, loader):
            tensors = self.compute(batch)
            if not self.stored:
                self.allocate(tensors, log)
            rows = [self.row(sample) for sample in samples]
            self.targets.update(zip(rows, batch.targets))
            for stored, order, tensor in zip(self.stored, self.orders, tensors):
                for row, features in zip(rows, to_host(tensor.permute(_inverse(order)))):
                    stored[row] = features
        parts = "backbone" if self.example is None else "backbone and encoder"
        duration = format_duration(time.monotonic() - started)
        log(f"        computed by the frozen {parts} in {duration}")

    def all_samples(self) -> list[list[SampleIndex]]:
        """Return a sample for each row, in batches of one size; the last one begins again."""
        samples: list[SampleIndex] = []
        for variant in range(self.dataset.num_variants or 1):
            for index in range(len(self.dataset)):
                # The first epoch in which the image is flipped, or is not.
                epochs = map(SampleIndex, count(), repeat(index))
                samples.append(next(x for x in epochs if self.dataset.variant(x) == variant))
        size = self.plan.micro_batch_size
        padded = list(islice(cycle(samples), math.ceil(len(samples) / size) * size))
        return [padded[first : first + size] for first in range(0, len(padded), size)]

    def row(self, sample: SampleIndex) -> int:
        """Return the row of a sample: first those of all images, then those of flipped ones."""
        return sample.index + self.dataset.variant(sample) * len(self.dataset)

    @torch.no_grad()
    def compute(self, batch: Batch) -> list[Tensor]:
        """Return the features of a batch: the tokens of the memory, or the feature maps."""
        images = batch.images(self.device)
        assert not isinstance(images, CameraImages)
        shape = tuple(images.pixels.shape)
        self.input_shape = self.input_shape or shape
        if images.padded or shape != self.input_shape:
            raise different_sizes()
        accelerator = self.plan.accelerator
        with tf32_of(accelerator), accelerator.autocast():
            maps = self.model.backbone(images.pixels, images.padding)
            if not is_frozen(self.model.encoder):
                return list(maps)
            memory = self.model.encoder(maps, images)
        if type(memory) is not Memory:
            # That of a pixel decoder also has points that are drawn at random in every step.
            return list(maps)
        if self.example is None:
            self.example = memory
        elif not torch.equal(memory.position, self.example.position):
            raise UsageError(
                "the position embedding of this encoder depends on the images, so the memory "
                "cannot be cached",
                remedy=f"{LEAVE_OUT}, or leave encoder out of --freeze",
            )
        return [memory.tokens]

    def pack(self, tensors: list[Tensor]) -> CachedFeatures | CachedMemory:
        """Return the features of a batch as the input of the rest of the model."""
        if self.example is not None:
            return CachedMemory(replace(self.example, tokens=tensors[0]))
        batch_size, _, *image_size = self.input_shape
        padding = tensors[0].new_zeros((batch_size, *image_size), dtype=torch.bool)
        # No memory: the encoder needs the padding alone.
        no_pixels = tensors[0].new_zeros(()).expand(self.input_shape)
        return CachedFeatures(tensors, Images(no_pixels, padding, padded=False))

    def allocate(self, tensors: Sequence[Tensor], log: Callable[[str], None]) -> None:
        """Create the storage for all images, given the features of the first batch."""
        needed = sum(tensor[0].nbytes for tensor in tensors) * self.num_rows
        in_memory = needed <= MEMORY_SHARE * usable_bytes(torch.device("cpu"))
        free = shutil.disk_usage(self.plan.run.path).free
        if not in_memory and needed > free:
            raise UsageError(
                f"the features of {len(self.dataset)} images take {format_bytes(needed)}, and the "
                f"disk has {format_bytes(free)}",
                str(self.plan.run.path),
                f"choose a smaller --imgsz, or {LEAVE_OUT}",
            )
        where = "in memory" if in_memory else f"in files in {self.plan.run.path}"
        flipped = " and of the flipped ones" if self.num_rows > len(self.dataset) else ""
        log(
            f"cache   features of {len(self.dataset)} images{flipped}: {format_bytes(needed)} "
            f"{where}, {needed / self.num_rows / 2**10:.0f} KiB for each image"
        )
        for number, tensor in enumerate(tensors):
            # Axis 0 is that of the images; the others are stored in the order of their strides.
            strides = tensor.stride()
            order = (0, *sorted(range(1, tensor.ndim), key=[-x for x in strides].__getitem__))
            shape = [self.num_rows, *(tensor.shape[i] for i in order[1:])]
            if in_memory:
                self.stored.append(torch.empty(shape, dtype=tensor.dtype))
            else:
                self.stored.append(self._mapped(shape, tensor.dtype, number))
            self.orders.append(_inverse(order))

    def _mapped(self, shape: list[int], dtype: torch.dtype, number: int) -> Tensor:
        """Return a tensor whose memory is a file."""
        path = self._path(number)
        size = math.prod(shape)
        tensor = torch.from_file(str(path), shared=True, size=size, dtype=dtype)
        # The file needs no name while it is mapped. So it cannot be left behind, but on Windows.
        with suppress(OSError):
            path.unlink()
        return tensor.view(shape)

    def _path(self, number: int) -> Path:
        return self.plan.run.path / f"features{number}.bin"

    def close(self) -> None:
        """Free the features, and delete their files."""
        for number in range(len(self.stored)):
            self.stored[number] = torch.empty(0)
            with suppress(OSError):
                self._path(number).unlink()

    def batches(self, sampler: Iterable[list[SampleIndex]]) -> Iterator[Any]:
        """Yield the micro-batches that a sampler chooses, a `CachedBatch` each."""
        for samples in sampler:
            indices = [sample.index for sample in samples]
            rows = [self.row(sample) for sample in samples]
            yield CachedBatch(self, indices, rows, [self.targets[row] for row in rows])


class CachedModelWithLoss(ModelWithLoss):
    """`ModelWithLoss` whose images are `CachedFeatures` or `CachedMemory`."""

    def outputs(self, images: CachedFeatures | CachedMemory, targets: Sequence[Target]) -> Outputs:
        memory = images.memory(self.model.encoder)
        queries = self.model.queries(memory, targets)
        return Outputs(self.model.decoder(queries, memory), queries)


class CachedChunkedModelWithLoss(ChunkedModelWithLoss):
    """`ChunkedModelWithLoss` whose images are `CachedFeatures` or `CachedMemory`."""

    def memory(self, images: CachedFeatures | CachedMemory, _targets: Sequence[Target]) -> Memory:
        return images.memory(self.model.encoder)


def different_sizes() -> UsageError:
    """Return the error for images that are not of one size.

    The features of an image depend on the padding that the largest image of its batch gives it.
    """
    return UsageError(
        "--cache-features needs training images of one size, because the features of an image "
        "depend on the padding of its batch",
        remedy=LEAVE_OUT,
    )


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
    """Return the permutation that undoes another one."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))
