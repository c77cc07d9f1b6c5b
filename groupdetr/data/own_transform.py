"""A transform of a user: any module of torchvision.transforms.v2, on images, boxes and masks.

This module is imported only for such a transform, because torchvision takes longer to import than
PyTorch.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from groupdetr.data.sample import PlacedSegmentation, Sample
from groupdetr.data.segmentations import RunLengths
from groupdetr.data.transforms import AugmentedImage
from groupdetr.errors import UsageError
from groupdetr.structures.detections import decode_mask, encode_masks

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of a function or an object, in its repr
_TOLERANCE = 1e-3  # by which interpolation may exceed white and black
_REMEDY = "pass a module of torchvision.transforms.v2 that takes {'image', 'boxes', 'labels'}"


def describe_transform(transform: nn.Module) -> str:
    """Return the text by which config.yaml records a transform: its repr, without addresses."""
    return _ADDRESS.sub("", repr(transform))


def expect_transform(transform: object) -> None:
    """Raise `UsageError` unless a value is a module, as those of torchvision.transforms.v2 are."""
    if not isinstance(transform, nn.Module):
        raise UsageError(f"transform is a {type(transform).__name__}, not a module", "", _REMEDY)


class OwnTransform:
    """Applies a module to samples, before the image is resized.

    The module gets a dictionary: ``image`` (`tv_tensors.Image`, bytes [3,H,W]), ``boxes``
    (`tv_tensors.BoundingBoxes`, XYXY), ``labels`` (int64, indices of the objects) and, for instance
    segmentation, ``masks`` (`tv_tensors.Mask`, [T,H,W]). It returns the same. Objects may be left
    out, as `v2.SanitizeBoundingBoxes` does. Boxes are clipped to the image, and those without area
    are dropped. All random numbers of torch, NumPy and Python follow from the sample.
    """

    def __init__(self, module: nn.Module) -> None:
        expect_transform(module)
        self.module = module

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return the transformed sample. `UsageError` if the module fails or returns no sample."""
        seed = int(torch.randint(2**31, (), generator=generator))
        height, width = sample.image.size
        boxes = torch.from_numpy(sample.image.boxes.copy())
        inputs: dict[str, Any] = {
            "image": tv_tensors.Image(sample.image.image.clone()),  # The original stays in a cache.
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            # Indices instead of classes, so that the objects that are left can be told apart.
            "labels": torch.arange(len(boxes)),
        }
        if sample.segmentations is not None:
            masks = [
                decode_mask(placed.segmentation.to_rle(height, width))
                for placed in sample.segmentations
            ]
            stacked = np.stack(masks) if masks else np.zeros((0, height, width), dtype=bool)
            inputs["masks"] = tv_tensors.Mask(torch.from_numpy(stacked))
        with seeded(seed):
            try:
                outputs = self.module(inputs)
            except Exception as error:  # any that the code of a user raises
                what = f"the transform failed: {type(error).__name__}: {error}"
                raise UsageError(what, describe_transform(self.module), _REMEDY) from error
        return self._sample(outputs, sample)

    def _sample(self, outputs: Any, original: Sample) -> Sample:
        if not isinstance(outputs, dict) or not {"image", "boxes", "labels"} <= outputs.keys():
            raise self._refused(f"it returned a {type(outputs).__name__} without these keys")
        image = self._bytes(outputs["image"])
        size = (image.shape[1], image.shape[2])
        boxes, rows = outputs["boxes"], outputs["labels"]
        if isinstance(boxes, tv_tensors.BoundingBoxes):
            boxes = F.convert_bounding_box_format(boxes, new_format="XYXY")
        corners = np.asarray(boxes.as_subclass(Tensor).float()).reshape(-1, 4)
        indices = np.asarray(rows, dtype=np.int64).reshape(-1)
        masks = outputs.get("masks")
        if len(corners) != len(indices) or (masks is not None and len(masks) != len(indices)):
            raise self._refused("it returned other numbers of boxes, labels and masks")
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(original.labels):
            raise self._refused("its labels are not some of those that it was given")
        side = np.array([size[1], size[0]] * 2, dtype=np.float32)
        corners = corners.clip(0, side).astype(np.float32)
        segmentations = None
        if original.segmentations is not None:
            if masks is None:
                raise self._refused("it returned no masks")
            if tuple(masks.shape[1:]) != size:
                raise self._refused("its masks have another size than its image")
            encoded = encode_masks(np.asarray(masks.as_subclass(Tensor)).astype(bool))
            segmentations = tuple(
                PlacedSegmentation(RunLengths(rle["counts"], size)) for rle in encoded
            )
        labels = original.labels[indices]
        return Sample(AugmentedImage(image, corners), labels, segmentations)

    def _bytes(self, image: object) -> Tensor:
        """Return the image as bytes [3,H,W], dense and channels last in memory."""
        if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] != 3:
            raise self._refused("its image is not a tensor [3,H,W]")
        pixels = image.as_subclass(Tensor)
        if 0 in pixels.shape:
            raise self._refused("its image has no pixels")
        if pixels.is_floating_point():
            low, high = float(pixels.min()), float(pixels.max())
            if low < -_TOLERANCE or not high <= 1 + _TOLERANCE:
                raise self._refused(
                    f"its image has values from {low:.3g} to {high:.3g}; leave out Normalize, "
                    "because images are normalised afterwards"
                )
            pixels = pixels.clamp(0, 1)
        pixels = F.to_dtype(pixels, torch.uint8, scale=True)
        return pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)

    def _refused(self, what: str) -> UsageError:
        where = describe_transform(self.module)
        return UsageError(f"the transform cannot be used: {what}", where, _REMEDY)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Give the global generators of torch, NumPy and Python this seed, and restore them after."""
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    python_state = random.getstate()
    # Not `torch.manual_seed`, which seeds GPUs, too: dropout would depend on the images.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
