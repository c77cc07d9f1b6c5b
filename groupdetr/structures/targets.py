"""The annotated objects of an image, and of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.structures.masks import CroppedMasks
from groupdetr.structures.tensor_dataclass import TensorDataclass, require

# How far a coordinate of a box may be outside of [0,1] by rounding.
ROUNDING = 1e-3
SIZES_3D = slice(3, 6)  # width, length and height in a 3D box


@dataclass
class Target(TensorDataclass):
    """The T objects of one image. A batch is a list of targets.

    >>> labels, boxes = torch.tensor([2]), torch.tensor([[0.5, 0.5, 0.2, 0.3]])
    >>> target = groupdetr.Target(labels, boxes)
    >>> len(target)  # one object, of class 2
    1

    `ValueError` if there are not as many boxes, and masks if any, as labels, or if a tensor has
    another shape, type or range than the comments of the fields say. Reading the values of tensors
    on a GPU would wait for the GPU. The values of such tensors are checked by the criterion, which
    also checks that there is a class for every label.
    """

    labels: Tensor  # [T] int64, contiguous class indices from 0; other integers are converted
    # [T,4] cx,cy,w,h in [0,1] of the unpadded image, or [T,9] 3D boxes as in `ops.boxes3d`
    boxes: Tensor
    masks: CroppedMasks | None = None  # [T] if masks are to be learned; [T,H,W] is converted
    # The largest label, -1 without objects. None if the tensors were created on a GPU: then their
    # values are not checked yet.
    max_label: int | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.masks, Tensor):
            self.masks = CroppedMasks.from_dense(self.masks)
        self.labels = _int64_labels(self.labels)
        objects = len(self.labels)
        require(
            isinstance(self.boxes, Tensor),
            f"boxes must be a tensor [{objects},4] or [{objects},9], "
            f"not {type(self.boxes).__name__}",
        )
        shape = tuple(self.boxes.shape)
        require(
            shape in ((objects, 4), (objects, 9)),
            f"boxes of {objects} labels must be [{objects},4] or [{objects},9], not {shape}",
        )
        require(
            self.boxes.is_floating_point(),
            f"boxes {list(shape)} must be floating-point numbers, not {self.boxes.dtype}: "
            "2D boxes are cx, cy, w, h in [0,1], relative to the image",
        )
        require(
            self.masks is None or isinstance(self.masks, CroppedMasks),
            f"masks must be a tensor [T,H,W] or CroppedMasks, not {type(self.masks).__name__}",
        )
        masks = objects if self.masks is None else len(self.masks)
        require(masks == objects, f"{masks} masks for {objects} labels")
        if objects == 0:
            self.max_label = -1
        elif self.labels.device.type == "cpu" and self.boxes.device.type == "cpu":
            require_valid_values(self.labels, self.boxes)
            self.max_label = int(self.labels.max())

    def __len__(self) -> int:
        return len(self.labels)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return a copy with ``function`` applied to every tensor. Nothing is checked again."""
        mapped = copy(self)
        mapped.labels = function(self.labels)
        mapped.boxes = function(self.boxes)
        mapped.masks = None if self.masks is None else self.masks.map(function)
        return mapped


def _int64_labels(labels: Tensor) -> Tensor:
    """Return labels [T] as int64. `ValueError` if they are no such tensor."""
    require(
        isinstance(labels, Tensor),
        f"labels must be a tensor [T] of integers, not {type(labels).__name__}",
    )
    require(labels.ndim == 1, f"labels must be [T], not {tuple(labels.shape)}")
    if labels.dtype == torch.int64:
        return labels
    # `torch.tensor([])` is float32, but it has no label that conversion could change.
    is_integer = not (labels.is_floating_point() or labels.is_complex()) and (
        labels.dtype != torch.bool
    )
    require(
        is_integer or len(labels) == 0,
        f"labels [{len(labels)}] must be integers (int64), the indices of the classes from 0, "
        f"not {labels.dtype}",
    )
    return labels.long()


def require_valid_values(labels: Tensor, boxes: Tensor) -> None:
    """Raise `ValueError` unless labels [T] and boxes [T,4] or [T,9] have values that are possible.

    T is at least 1. On a GPU this waits for the GPU.
    """
    lowest_label = int(labels.min())
    require(
        lowest_label >= 0,
        f"labels [{len(labels)}] must be the indices of the classes from 0, not {lowest_label}",
    )
    low, high = boxes.detach().aminmax(dim=0)
    lowest, highest = low.tolist(), high.tolist()
    shape = list(boxes.shape)
    # A comparison with nan is false.
    require(
        all(-torch.inf < x <= y < torch.inf for x, y in zip(lowest, highest)),
        f"boxes {shape} must be finite; one of them has a coordinate that is nan or infinite",
    )
    if len(lowest) == 4:
        require(
            min(lowest[2:]) >= 0,
            f"boxes {shape} must be cx, cy, w, h; one of them has the width or height "
            f"{min(lowest[2:]):g}",
        )
        require(
            min(lowest) >= -ROUNDING and max(highest) <= 1 + ROUNDING,
            f"boxes {shape} must be cx, cy, w, h in [0,1], relative to the image; they have values "
            f"from {min(lowest):g} to {max(highest):g}: divide pixels by the width and height of "
            "the image",
        )
    else:
        sizes = lowest[SIZES_3D]
        require(
            min(sizes) > 0,
            f"boxes {shape} must be x, y, z, width, length, height, yaw and velocity in x and y; "
            f"one of them has the width, length or height {min(sizes):g}",
        )


def require_targets(targets: Sequence[Target], num_images: int) -> None:
    """Raise `ValueError` unless ``targets`` is a list with one `Target` for each image."""
    described = "targets must be a list with a groupdetr.Target(labels [T], boxes [T,4]) for each "
    require(
        isinstance(targets, Sequence) and not isinstance(targets, str),
        f"{described}of {num_images} images, not {type(targets).__name__}",
    )
    for target in targets:
        require(
            isinstance(target, Target),
            f"{described}of {num_images} images, not a list of {type(target).__name__}",
        )
    require(
        len(targets) == num_images,
        f"{described}image, but there are {len(targets)} targets for {num_images} images",
    )


def require_known_labels(targets: Sequence[Target], num_classes: int) -> None:
    """Raise `ValueError` if a label has no class.

    Labels that were created on a GPU are not checked here, because that would wait for the GPU.
    """
    largest = max((target.max_label or 0 for target in targets), default=0)
    require(
        largest < num_classes,
        f"a target has the label {largest}, but there are {num_classes} classes: labels must be "
        f"0 to {num_classes - 1}",
    )


def require_valid_targets(targets: Sequence[Target], num_classes: int) -> None:
    """Raise `ValueError` if values of targets are impossible that were not checked before.

    They are those of targets that were created on a GPU. This waits for the GPU.
    """
    for target in targets:
        if target.max_label is None:
            require_valid_values(target.labels, target.boxes)
            target.max_label = int(target.labels.max())
    require_known_labels(targets, num_classes)


@dataclass
class TargetBatch(TensorDataclass):
    """The targets of a batch in one tensor, padded to the T of the image with most objects."""

    labels: Tensor  # [B,T] int64; 0 in the padding
    boxes: Tensor  # [B,T,4|9]; ones in the padding, boxes with an area, so that costs are finite
    counts: tuple[int, ...]  # [B] number of objects of each image
    masks: tuple[CroppedMasks | None, ...] = ()  # [B] of [T] each, if masks are to be learned
    # [B,T] bool, True for objects with impossible values; None if all values are checked already
    invalid: Tensor | None = None
    # Of a single image, see `image`: its different labels [C], and the index of each object's [T]
    classes: Tensor | None = None
    object_class: Tensor | None = None

    @property
    def cropped_masks(self) -> list[CroppedMasks]:
        """The masks of all images. `ValueError` if an image has none."""
        masks = [mask for mask in self.masks if mask is not None]
        require(
            len(masks) == len(self.counts),
            "targets have no masks: create them as Target(labels, boxes, masks), masks [T,H,W]",
        )
        return masks

    @classmethod
    def from_targets(cls, targets: Sequence[Target], min_objects: int = 0) -> TargetBatch:
        """Pad and stack targets. T is at least ``min_objects``."""
        counts = tuple(len(target) for target in targets)
        padded_count = max(*counts, min_objects)
        labels, boxes = [], []
        for target, count in zip(targets, counts):
            labels.append(F.pad(target.labels, (0, padded_count - count)))
            boxes.append(F.pad(target.boxes, (0, 0, 0, padded_count - count), value=1.0))
        masks = tuple(target.masks for target in targets)
        return cls(torch.stack(labels), torch.stack(boxes), counts, masks)

    def image(self, index: int) -> TargetBatch:
        """Return the targets of one image without padding, with `classes` and `object_class`.

        On a GPU this waits for the GPU.
        """
        count = self.counts[index]
        labels = self.labels[index : index + 1, :count]
        classes, object_class = labels[0].unique(return_inverse=True)
        return TargetBatch(
            labels,
            self.boxes[index : index + 1, :count],
            (count,),
            self.masks[index : index + 1],
            None if self.invalid is None else self.invalid[index : index + 1, :count],
            classes,
            object_class,
        )

    def mark_invalid(self, num_classes: int) -> TargetBatch:
        """Return the batch with `invalid`, in which invalid labels are replaced by 0.

        So an invalid label is no index out of range on a GPU, and the error can wait until the
        matcher copies the costs to the host.
        """
        boxes = self.boxes
        possible = (self.labels >= 0) & (self.labels < num_classes) & boxes.isfinite().all(-1)
        if boxes.shape[-1] == 4:
            within = (boxes >= -ROUNDING) & (boxes <= 1 + ROUNDING)
            possible &= within.all(-1) & (boxes[..., 2:] >= 0).all(-1)
        else:
            possible &= (boxes[..., SIZES_3D] > 0).all(-1)
        invalid = ~possible
        return replace(self, labels=self.labels.masked_fill(invalid, 0), invalid=invalid)
