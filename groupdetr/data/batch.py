"""Batches of images and targets: padding, transfer from worker processes, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from groupdetr.ops.transfer import to_device
from groupdetr.structures.images import IMAGENET_MEAN, IMAGENET_STD, Images
from groupdetr.structures.masks import CroppedMasks
from groupdetr.structures.targets import Target


@dataclass
class ImageBatch:
    """A batch of padded images as bytes, with their targets, as the data loader returns it.

    Bytes take a quarter of the memory of floats; `images` converts them on the device.
    """

    pixels: Tensor  # [B,3,H,W] uint8, channels last in memory, as images are decoded and resized
    sizes: Tensor  # [B,2] int64: height and width of each image without its padding
    targets: list[Target]
    indices: list[int]  # of the images in their dataset

    def images(self, device: torch.device) -> Images:
        """Return the images on ``device``, normalised.

        The padding is zero after normalisation, as in the training of all published weights.
        """
        pixels = to_device(self.pixels, device)
        sizes = to_device(self.sizes, device)
        padding = padding_mask(sizes, pixels.shape[-2:])
        return normalise(pixels, padding, self.padded)

    @property
    def padded(self) -> bool:
        """True if any image is smaller than the batch.

        ``sizes`` is on the host, so this does not wait for a GPU.
        """
        return bool((self.sizes != torch.tensor(self.pixels.shape[-2:])).any())

    def pin_memory(self) -> ImageBatch:
        """Return the batch with all tensors in pinned memory, so that copies to a GPU can overlap.

        PyTorch's data loader calls it.
        """
        targets = [target.map(Tensor.pin_memory) for target in self.targets]
        return ImageBatch(self.pixels.pin_memory(), self.sizes.pin_memory(), targets, self.indices)

    def __getstate__(self) -> dict[str, object]:
        """Return the state to pickle, in which small tensors are numpy arrays.

        A worker sends tensors as shared memory, one file each. That is efficient for the pixels,
        but slow for small tensors.
        """
        targets = [_to_arrays(target) for target in self.targets]
        return {**vars(self), "sizes": self.sizes.numpy(), "targets": targets}

    def __setstate__(self, state: dict[str, Any]) -> None:
        targets = [_from_arrays(*arrays) for arrays in state["targets"]]
        vars(self).update(state)
        self.sizes = torch.from_numpy(state["sizes"])
        self.targets = targets


def _to_arrays(target: Target) -> tuple[NDArray[np.generic], ...]:
    labels = target.labels.numpy()
    boxes = target.boxes.numpy()
    if target.masks is None:
        return labels, boxes
    return labels, boxes, target.masks.pixels.numpy(), target.masks.windows.numpy()


def _from_arrays(
    labels: NDArray[np.int64],
    boxes: NDArray[np.float32],
    mask_pixels: NDArray[np.uint8] | None = None,
    mask_windows: NDArray[np.int64] | None = None,
) -> Target:
    masks = None
    if mask_pixels is not None and mask_windows is not None:
        masks = CroppedMasks(torch.from_numpy(mask_pixels), torch.from_numpy(mask_windows))
    return Target(torch.from_numpy(labels), torch.from_numpy(boxes), masks)


def collate(samples: Sequence[tuple[Tensor, Target, int]]) -> ImageBatch:
    """Return the batch of samples (image [3,H,W] uint8, target, index).

    Images are padded with zeros at the right and below, to the largest height and width.
    """
    images = [image for image, _, _ in samples]
    targets = [target for _, target, _ in samples]
    indices = [index for _, _, index in samples]
    sizes = torch.tensor([image.shape[1:] for image in images])
    batch_height, batch_width = sizes.amax(0).tolist()
    pixels = shared_batch(len(images), batch_height, batch_width)
    # The memory is not initialised: every pixel is written once, with the image or with zero.
    for padded_image, image in zip(pixels, images):
        height, width = image.shape[1:]
        padded_image[:, :height, :width] = image
        padded_image[:, :height, width:] = 0
        padded_image[:, height:] = 0
    return ImageBatch(pixels, sizes, targets, indices)


def shared_batch(num_images: int, height: int, width: int) -> Tensor:
    """Return an uninitialised tensor [B,3,H,W] uint8, channels last in memory.

    In a worker process it lies in memory shared with the training process, so sending it needs no
    copy.
    """
    num_bytes = num_images * height * width * 3
    if get_worker_info():
        storage = torch.UntypedStorage._new_shared(num_bytes)
    else:
        storage = torch.UntypedStorage(num_bytes)
    flat = torch.empty(0, dtype=torch.uint8).set_(storage)
    return flat.view(num_images, height, width, 3).permute(0, 3, 1, 2)


def padding_mask(sizes: Tensor, shape: Sequence[int]) -> Tensor:
    """Return [B,H,W] bool, True where a batch of ``shape`` (H, W) has padding.

    ``sizes`` [B,2] are the height and width of the images.
    """
    height, width = shape
    below = torch.arange(height, device=sizes.device) >= sizes[:, 0, None]  # [B,H]
    right = torch.arange(width, device=sizes.device) >= sizes[:, 1, None]  # [B,W]
    return below[:, :, None] | right[:, None, :]


def normalise(pixels: Tensor, padding: Tensor, padded: bool = True) -> Images:
    """Convert bytes [B,3,H,W] to floats normalised by ImageNet's mean and standard deviation.

    ``padding`` [B,H,W] is True where there is no image; the result is zero at these pixels.
    ``padded`` is False if no pixel is padding.
    """
    statistics = torch.tensor([IMAGENET_MEAN, IMAGENET_STD], dtype=torch.float32)
    mean, std = to_device(statistics.view(2, 3, 1, 1), pixels.device)
    floats = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    floats.div_(255).sub_(mean).div_(std)  # in place: the batch is large
    if padded:
        floats.masked_fill_(padding[:, None], 0.0)
    return Images(floats, padding, padded)
