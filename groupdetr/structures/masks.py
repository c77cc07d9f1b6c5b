"""Predicted masks, given by embeddings of queries, and annotated masks, stored cropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.ops.boxes import xyxy_to_cxcywh
from groupdetr.ops.masks import mask_logits, point_sample
from groupdetr.structures.tensor_dataclass import TensorDataclass, require

STRIDE = 4  # pixels of the image, in width and in height, for one pixel of the mask features
MAX_LOOKUPS = 1 << 22  # (object, point) pairs that `CroppedMasks.at` handles at once


@dataclass
class MaskFeatures(TensorDataclass):
    """The features of a batch of images; their dot product with an embedding is a mask."""

    pixels: Tensor  # [B,C,h,w] of the padded images, at a quarter of their size
    sizes: Tensor  # [B,2] int64: height and width of each image without its padding, in pixels
    # [B,P,2] x, y in [0,1] of the padded image: the points where masks are compared
    points: Tensor | None = None
    sampled: Tensor | None = None  # [B,C,P] the features at these points

    def with_points(
        self,
        count: int,
        generator: torch.Generator | None = None,
        padding_mode: str = "zeros",
    ) -> MaskFeatures:
        """Return features that are sampled at ``count`` random points of each image.

        All groups and layers share the points. Every image has points of its own, unless there is a
        ``generator``: then all images have the points that it draws, so those of an image do not
        depend on the batch that it is in. If there are points already, they are kept.
        ``padding_mode`` is that of `point_sample`.
        """
        if self.points is not None:
            return self
        images, device = len(self.pixels), self.pixels.device
        if generator is None:
            # torch.compile does not know a variable count together with a generator, not even None.
            points = torch.rand(images, count, 2, device=device)
        else:
            points = torch.rand(1, count, 2, generator=generator, device=device)
            points = points.expand(images, -1, -1)
        return self.sampled_at(points, padding_mode)

    def sampled_at(self, points: Tensor, padding_mode: str = "zeros") -> MaskFeatures:
        """Return features that are sampled at ``points`` [B,P,2]."""
        sampled = point_sample(self.pixels.float(), points, padding_mode)
        return replace(self, points=points, sampled=sampled)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the padded images, in pixels."""
        return STRIDE * self.pixels.shape[2], STRIDE * self.pixels.shape[3]


@dataclass
class MaskPredictions(TensorDataclass):
    """The predicted masks: an embedding for each query, and the features of the images.

    The logit of a mask at a pixel is the dot product of the two. Resizing and sampling are linear,
    so they are applied to the features once for all queries, and the K*N masks of all groups are
    never computed at full size. Between B and C, the embedding may have any axes, written "...".
    """

    # [B,...,C], or [B,...,C+1] with the bias of the mask as the last number; see `mask_logits`
    embedding: Tensor
    mask_features: MaskFeatures

    def full(self) -> Tensor:
        """Return logits at the size of the mask features: [B,...,h,w]."""
        return self.logits_on(self.mask_features.pixels)

    def resized(self, shape: Sequence[int]) -> Tensor:
        """Return logits at another size, by bilinear interpolation: [B,...,*shape]."""
        pixels = F.interpolate(
            self.mask_features.pixels, tuple(shape), mode="bilinear", align_corners=False
        )
        return self.logits_on(pixels)

    def at(self, points: Tensor) -> Tensor:
        """Return logits at points [B,P,2], x and y in [0,1] of the padded image: [B,...,P]."""
        return self.logits_on(point_sample(self.mask_features.pixels, points))

    def logits_on(self, pixels: Tensor) -> Tensor:
        """Return logits for features [B,C,*shape]: [B,...,*shape]."""
        logits = mask_logits(self.embedding.flatten(1, -2), pixels.flatten(2))
        return logits.view(*self.embedding.shape[:-1], *pixels.shape[2:])

    def boxes(self) -> Tensor:
        """Return the tightest boxes around the masks at the size of the mask features.

        [B,...,4] cx,cy,w,h in [0,1] of the unpadded image, zeros for empty masks. It computes the
        masks of all queries at full size, so it is meant for a few queries.
        """
        inside = self.full() > 0  # [B,...,h,w]
        row_positions = torch.arange(inside.shape[-2], device=inside.device) * STRIDE
        column_positions = torch.arange(inside.shape[-1], device=inside.device) * STRIDE
        # Height and width of the unpadded images, [B,...,1] each.
        query_axes = [1] * (inside.ndim - 3)
        height, width = self.mask_features.sizes.view(-1, *query_axes, 2).split(1, -1)
        # Nothing in the padding belongs to a mask.
        inside &= (row_positions < height).unsqueeze(-1)
        inside &= (column_positions < width).unsqueeze(-2)
        left, right = first_and_end(inside.any(-2))
        top, bottom = first_and_end(inside.any(-1))
        corners = STRIDE * torch.stack([left, top, right, bottom], -1)
        image_sizes = torch.cat([width, height, width, height], -1)
        # The last pixel of the features may reach over the edge of the image.
        return xyxy_to_cxcywh((corners / image_sizes).clamp(max=1))


@dataclass
class CroppedMasks(TensorDataclass):
    """The masks of the T objects of one image, each cropped to the window that it lies in.

    300 masks of objects of usual size then take little more memory than the image.
    """

    # [A] uint8, 0 or 1: the windows one after the other, each row by row, and a final zero, which
    # is used for all pixels outside of the windows
    pixels: Tensor
    windows: Tensor  # [T,4] int64: left, top, width and height in pixels of the image

    def __post_init__(self) -> None:
        require(self.windows.ndim == 2 and self.windows.shape[1] == 4, "windows must be [T,4]")
        require(
            self.pixels.ndim == 1 and len(self.pixels) > 0,
            "pixels must be [A], the last of them zero",
        )

    @classmethod
    def from_dense(cls, masks: Tensor) -> CroppedMasks:
        """Crop masks [T,H,W]: bools, whole numbers that are not zero inside, or 0.0 and 1.0.

        `ValueError` if they have another shape, or are probabilities.
        """
        require(masks.ndim == 3, f"masks must be [T,H,W], not {tuple(masks.shape)}")
        if masks.is_floating_point():
            require(
                bool(((masks == 0) | (masks == 1)).all()),
                "masks of floating-point numbers must be 0 or 1; compare others with a threshold, "
                "such as masks > 0.5",
            )
        if len(masks) == 0:
            no_pixels = masks.new_zeros(1, dtype=torch.uint8)
            return cls(no_pixels, masks.new_zeros(0, 4, dtype=torch.int64))
        windows = torch.stack([mask_window(mask) for mask in masks])
        cropped = []
        for mask, (left, top, width, height) in zip(masks, windows.tolist()):
            window = mask[top : top + height, left : left + width]
            cropped.append(window.ne(0).flatten())
        outside = masks.new_zeros(1, dtype=torch.bool)
        return cls(torch.cat([*cropped, outside]).to(torch.uint8), windows)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, indices: Sequence[int]) -> CroppedMasks:
        """Return the masks at ``indices``."""
        indices = list(indices)
        windows = self.windows[indices]
        cropped = []
        for start, (_, _, width, height) in zip(self.starts[indices].tolist(), windows.tolist()):
            cropped.append(self.pixels[start : start + width * height])
        outside = self.pixels[-1:]
        return CroppedMasks(torch.cat([*cropped, outside]), windows)

    @property
    def starts(self) -> Tensor:
        """[T] index in `pixels` of the first pixel of every window."""
        areas = self.windows[:, 2] * self.windows[:, 3]
        return areas.cumsum(0) - areas

    def at(self, points: Tensor) -> Tensor:
        """Sample the masks at points [P,2], x and y in pixels of the image: [T,P] float32.

        The interpolation is bilinear, and masks are zero outside of their windows.
        """
        if len(self) == 0:
            return points.new_zeros(0, len(points))
        # Only a few objects at a time are sampled, to bound the memory.
        objects_at_once = max(1, MAX_LOOKUPS // max(1, len(points)))
        objects = torch.arange(len(self), device=points.device)
        return torch.cat([self._at(points, part) for part in objects.split(objects_at_once)])

    def nearest_at(self, points: Tensor) -> Tensor:
        """Return the pixels of the masks that hold the points [P,2]: [T,P] float32.

        ``points`` are x and y in pixels of the image. Masks are zero outside of their windows.
        """
        if len(self) == 0:
            return points.new_zeros(0, len(points))
        x, y = points.floor().long().unbind(1)
        # Only a few objects at a time are sampled, to bound the memory.
        objects_at_once = max(1, MAX_LOOKUPS // max(1, len(points)))
        objects = torch.arange(len(self), device=points.device)
        sampled = [self._pixel(x, y, part) for part in objects.split(objects_at_once)]
        return torch.cat(sampled).to(points.dtype)

    def _at(self, points: Tensor, objects: Tensor) -> Tensor:
        """Return `at` for the R objects with the indices ``objects`` [R]: [R,P]."""
        # The centre of pixel (x, y) is at (x + 0.5, y + 0.5).
        first_pixel = (points - 0.5).floor()
        fraction_x, fraction_y = (points - 0.5 - first_pixel).unbind(1)  # [P] each
        first_x, first_y = first_pixel.long().unbind(1)
        total = points.new_zeros(len(objects), len(points))
        # The four pixels around each point, weighted by their nearness on both axes.
        for step_x, weight_x in ((0, 1 - fraction_x), (1, fraction_x)):
            for step_y, weight_y in ((0, 1 - fraction_y), (1, fraction_y)):
                pixel = self._pixel(first_x + step_x, first_y + step_y, objects)
                total += (weight_x * weight_y) * pixel
        return total

    def _pixel(self, x: Tensor, y: Tensor, objects: Tensor) -> Tensor:
        """Return the pixels of the masks of ``objects`` [R]: [R,P].

        ``x`` and ``y`` [P] int64 are the columns and the rows of the pixels in the image.
        """
        left, top, width, height = self.windows[objects].unsqueeze(-1).unbind(1)  # [R,1] each
        x, y = x - left, y - top
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        index = self.starts[objects, None] + y * width + x
        # Outside of the window, the index is that of the final zero.
        return self.pixels[index.masked_fill_(~inside, -1)]


def first_and_end(inside: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index of the first True and that of the last True plus one: [...] each.

    ``inside`` [...,n] bool. Both are zero if none is True.
    """
    any_inside = inside.any(-1)
    length = inside.shape[-1]
    first = inside.int().argmax(-1)
    end = length - inside.flip(-1).int().argmax(-1)
    return first * any_inside, end * any_inside


def mask_window(mask: Tensor) -> Tensor:
    """Return left, top, width and height of what is not zero in a mask [H,W]: [4] int64.

    An empty mask has four zeros.
    """
    rows = mask.ne(0).any(1).nonzero().flatten()
    columns = mask.ne(0).any(0).nonzero().flatten()
    if not len(rows):
        return torch.zeros(4, dtype=torch.int64, device=mask.device)
    top, left = rows[0], columns[0]
    return torch.stack([left, top, columns[-1] - left + 1, rows[-1] - top + 1])
