"""DETR's augmentation (Carion et al. 2020, appendix A.4) and large-scale jitter.

A transform maps an image and a random generator to another image. All sizes scale with ``imgsz``.
Images are resized by PyTorch. Torchvision does the same, but its import takes longer than that of
PyTorch, and the overhead of its transform classes is two fifths of the time of resizing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn import functional as F

from groupdetr.data.image_transform import ImageTransform

SHORTEST = tuple(range(480, 801, 32))  # pixels of the shortest side; validation uses the last
LONGEST = 1333  # pixels of the longest side, at most
CROP_SHORTEST = (400, 500, 600)  # pixels of the shortest side before the random crop
# Images with a larger ratio of their sides are not cropped. DETR has no limit, and its resize
# before the crop would make 360 million pixels of an image of 10 x 10,000.
MAX_CROPPED_RATIO = 16
CROP = (384, 600)  # smallest and largest side of the random crop, in pixels
IMGSZ = SHORTEST[-1]  # the `imgsz` to which all these lengths belong
SQUARE = 1024  # pixels of the side of the square that large-scale jitter returns
# How far the sides of square images are from `imgsz`, in multiples that the network needs: those of
# LW-DETR, drawn for each image, and those of RF-DETR, drawn for each step
PER_IMAGE = range(-3, 5)
PER_BATCH = range(-5, 6)
JITTER = (0.1, 2.0)  # its range of scales; at 1 the image just fits into the square
GREY = 128  # value of the padding in the square


@dataclass(frozen=True)
class InputShape:
    """What a network needs of the shape of its images.

    Images are resized to such a shape. They are not padded, because padding would shift the windows
    of a backbone with windows, and change its results.
    """

    square: bool = False  # True: both sides are `imgsz`, and the aspect ratio is not kept
    divisor: int = 1  # both sides, in pixels, are multiples of it

    def round(self, pixels: int) -> int:
        """Return the side of an image: the nearest multiple of the divisor, at least one."""
        if self.divisor == 1:
            return pixels
        # Halves are rounded up, for every multiple alike.
        return max(1, (2 * pixels + self.divisor) // (2 * self.divisor)) * self.divisor

    def sides(self, imgsz: int, offsets: Sequence[int]) -> list[int]:
        """Return the sides of squares: ``imgsz``, and each of ``offsets`` times the divisor added.

        Sides other than ``imgsz`` are at least two multiples.
        """
        side = self.round(imgsz)
        sides = [side + offset * self.divisor for offset in offsets]
        return [other for other in sides if other == side or other >= 2 * self.divisor]


ANY_SHAPE = InputShape()


@dataclass(frozen=True)
class AugmentedImage:
    """An image with the boxes of its objects.

    ``from_original`` maps points of the image on disk to points of this image.
    """

    image: Tensor  # [3,H,W] uint8; resizing is fastest if dense and channels last in memory
    boxes: NDArray[np.float32]  # [T,4] x0, y0, x1, y1 in pixels
    from_original: ImageTransform = field(default_factory=ImageTransform)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[1], self.image.shape[2]

    def flipped(self) -> AugmentedImage:
        """Return the image mirrored horizontally."""
        width = self.size[1]
        boxes = self.boxes.copy()
        boxes[:, 0] = width - self.boxes[:, 2]
        boxes[:, 2] = width - self.boxes[:, 0]
        transform = self.from_original.followed_by(scale=(-1, 1), shift=(width, 0))
        return AugmentedImage(self.image.flip(-1), boxes, transform)

    def resized(self, height: int, width: int) -> AugmentedImage:
        """Return the image at this size, by bilinear interpolation with antialiasing."""
        scale = (width / self.size[1], height / self.size[0])
        boxes = self.boxes.copy()
        boxes[:, ::2] *= scale[0]
        boxes[:, 1::2] *= scale[1]
        image = resize_pixels(self.image, height, width)
        return AugmentedImage(image, boxes, self.from_original.followed_by(scale))

    def cropped(self, top: int, left: int, height: int, width: int) -> AugmentedImage:
        """Return a window of the image, copied, with the boxes clipped to it.

        Clipped boxes may have no area.
        """
        boxes = np.empty_like(self.boxes)
        boxes[:, ::2] = (self.boxes[:, ::2] - left).clip(0, width)
        boxes[:, 1::2] = (self.boxes[:, 1::2] - top).clip(0, height)
        image = self.image[:, top : top + height, left : left + width].clone()
        transform = self.from_original.followed_by(shift=(-left, -top))
        return AugmentedImage(image, boxes, transform)

    def padded(self, height: int, width: int) -> AugmentedImage:
        """Return the image padded with grey at the right and below, up to this size.

        An axis that a crop has shortened must not be padded. Masks are clipped only at the border
        of the final image, so the part that the crop removed would appear on the padding.
        """
        channels = len(self.image)
        channels_last = torch.full((height, width, channels), GREY, dtype=torch.uint8)
        image = channels_last.permute(2, 0, 1)
        image[:, : self.size[0], : self.size[1]] = self.image
        return AugmentedImage(image, self.boxes.copy(), self.from_original)


Transform = Callable[[AugmentedImage, Generator], AugmentedImage]


def resize_pixels(image: Tensor, height: int, width: int) -> Tensor:
    """Return an image [3,H,W] of bytes at this size, by bilinear interpolation with antialiasing.

    The result has the order of the channels in memory that the image has.
    """
    if image.shape[1:] == (height, width):
        return image
    batch = image.unsqueeze(0)
    if batch.is_contiguous(memory_format=torch.channels_last):
        # For a batch of one image, PyTorch decides by the stride of the batch whether the result
        # has its channels last. `unsqueeze` does not set this stride, which has no meaning here.
        batch = image.as_strided(batch.shape, (image.numel(), *image.stride()))
    size = (height, width)
    return F.interpolate(batch, size, mode="bilinear", align_corners=False, antialias=True)[0]


def scale_length(pixels: int, imgsz: int) -> int:
    """Scale a length of DETR's recipe from the validation size 800 to ``imgsz``."""
    return max(1, round(pixels * imgsz / IMGSZ))


def random_integer(low: int, high: int, generator: Generator) -> int:
    """Return a random integer from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def resized_size(
    height: int, width: int, shortest: int, max_longest: int | None
) -> tuple[int, int]:
    """Return height and width after resizing the shortest side to ``shortest``.

    The shortest side becomes smaller than that where the longest side would exceed
    ``max_longest``. As in DETR, sizes are rounded to whole pixels.
    """
    min_side = min(height, width)
    max_side = max(height, width)
    if max_longest is not None and max_side / min_side * shortest > max_longest:
        shortest = round(max_longest * min_side / max_side)
    shortest = max(1, shortest)
    longest = max(1, int(shortest * max_side / min_side))
    return (shortest, longest) if height <= width else (longest, shortest)


@dataclass(frozen=True)
class RandomResize:
    """Resize the shortest side to one of ``sizes``, the longest to at most ``longest`` (DETR).

    With a ``divisor``, both sides are then rounded to multiples of it.
    """

    sizes: Sequence[int]
    longest: int | None = None
    divisor: int = 1

    def __call__(self, image: AugmentedImage, generator: Generator) -> AugmentedImage:
        return image.resized(*self.size(*image.size, generator))

    def size(self, height: int, width: int, generator: Generator) -> tuple[int, int]:
        """Draw the new height and width of an image."""
        shortest = self.sizes[random_integer(0, len(self.sizes) - 1, generator)]
        height, width = resized_size(height, width, shortest, self.longest)
        shape = InputShape(divisor=self.divisor)
        return shape.round(height), shape.round(width)


@dataclass(frozen=True)
class SquareResize:
    """Resize the image to a square with one of ``sides``, without its aspect ratio (LW-DETR)."""

    sides: Sequence[int]

    def __call__(self, image: AugmentedImage, generator: Generator) -> AugmentedImage:
        return image.resized(*self.size(*image.size, generator))

    def size(self, _height: int, _width: int, generator: Generator) -> tuple[int, int]:
        """Draw the new height and width of an image, which are equal."""
        side = self.sides[random_integer(0, len(self.sides) - 1, generator)]
        return side, side


Resize = RandomResize | SquareResize


@dataclass(frozen=True)
class RandomSizeCrop:
    """Crop to a random width and height in [min_size, min(side, max_size)] each (DETR).

    A side shorter than ``min_size`` is kept.
    """

    min_size: int
    max_size: int

    def __call__(self, image: AugmentedImage, generator: Generator) -> AugmentedImage:
        return image.cropped(*self.window(*image.size, generator))

    def window(self, height: int, width: int, generator: Generator) -> tuple[int, int, int, int]:
        """Draw top, left, height and width of the crop."""
        crop_height = self._side(height, generator)
        crop_width = self._side(width, generator)
        top = random_integer(0, height - crop_height, generator)
        left = random_integer(0, width - crop_width, generator)
        return top, left, crop_height, crop_width

    def _side(self, side: int, generator: Generator) -> int:
        return random_integer(min(self.min_size, side), min(self.max_size, side), generator)


@dataclass(frozen=True)
class RandomFlip:
    """Flip the image horizontally with probability 0.5, then apply ``then``."""

    then: Transform

    def __call__(self, image: AugmentedImage, generator: Generator) -> AugmentedImage:
        if self.draw(generator):
            image = image.flipped()
        return self.then(image, generator)

    @staticmethod
    def draw(generator: Generator) -> bool:
        """Return whether an image is flipped."""
        return bool(torch.rand(1, generator=generator) < 0.5)


def is_cropped(height: int, width: int) -> bool:
    """Return whether `RandomSelect` may crop an image of this size."""
    return max(height, width) <= MAX_CROPPED_RATIO * min(height, width)


@dataclass(frozen=True)
class RandomSelect:
    """Resize and crop the image with probability 0.5, then apply ``then``.

    Images whose sides differ by more than `MAX_CROPPED_RATIO` times are never cropped.
    """

    resize: Resize
    crop: RandomSizeCrop
    then: Transform

    def __call__(self, image: AugmentedImage, generator: Generator) -> AugmentedImage:
        # The same random draw as in torchvision's v2.RandomChoice.
        choice = torch.multinomial(torch.tensor([0.5, 0.5]), 1, generator=generator)
        if choice and is_cropped(*image.size):
            image = self.crop(self.resize(image, generator), generator)
        return self.then(image, generator)


@dataclass(frozen=True)
class LargeScaleJitter:
    """Large-scale jitter (Ghiasi et al. 2021): random resize, then crop or pad to a square.

    At scale 1 the image just fits into the square of ``side`` pixels; scales are drawn from
    [low, high]. As in Mask2Former, one random number places the crop on both axes.
    """

    side: int
    low: float
    high: float

    def __call__(self, image: AugmentedImage, generator: Generator) -> AugmentedImage:
        random = torch.rand(2, generator=generator, dtype=torch.float64)
        random_scale, crop_position = random.tolist()
        scale = self.low + (self.high - self.low) * random_scale
        image = image.resized(*self.size(*image.size, scale))
        height, width = image.size
        top = round(max(0, height - self.side) * crop_position)
        left = round(max(0, width - self.side) * crop_position)
        cropped = image.cropped(top, left, min(self.side, height), min(self.side, width))
        return cropped.padded(self.side, self.side)

    def size(self, height: int, width: int, scale: float) -> tuple[int, int]:
        """Return the height and width before the crop."""
        ratio = min(self.side * scale / height, self.side * scale / width)
        return max(1, round(height * ratio)), max(1, round(width * ratio))


def detr_transform(
    imgsz: int, shape: InputShape = ANY_SHAPE, offsets: Sequence[int] = (0,)
) -> Transform:
    """Return DETR's training augmentation.

    It is a random flip, then either a resize, or a resize, a crop and a second resize. For squares,
    it is that of LW-DETR and RF-DETR: the last resize is to a square of a side that is drawn from
    `InputShape.sides`, and the lengths before it do not depend on ``imgsz``.
    """
    if shape.square:
        to_square = SquareResize(shape.sides(imgsz, offsets))
        crop = RandomSizeCrop(*CROP)
        return RandomFlip(RandomSelect(RandomResize(CROP_SHORTEST), crop, to_square))
    sizes = [scale_length(pixels, imgsz) for pixels in SHORTEST]
    resize = RandomResize(sizes, scale_length(LONGEST, imgsz), shape.divisor)
    sizes_before_crop = [scale_length(pixels, imgsz) for pixels in CROP_SHORTEST]
    min_size, max_size = (scale_length(pixels, imgsz) for pixels in CROP)
    crop = RandomSizeCrop(min_size, max_size)
    return RandomFlip(RandomSelect(RandomResize(sizes_before_crop), crop, resize))


def lsj_transform(
    imgsz: int, shape: InputShape = ANY_SHAPE, _offsets: Sequence[int] = ()
) -> Transform:
    """Return a random flip and large-scale jitter to a square of 1024/800 of ``imgsz``."""
    return RandomFlip(LargeScaleJitter(lsj_side(imgsz, shape), *JITTER))


def lsj_side(imgsz: int, shape: InputShape = ANY_SHAPE) -> int:
    """Return the side of the square of large-scale jitter."""
    return shape.round(scale_length(SQUARE, imgsz))


def flip_transform(
    imgsz: int, shape: InputShape = ANY_SHAPE, offsets: Sequence[int] = (0,)
) -> Transform:
    """Return a random flip and the resize of validation.

    It is for images in which absolute size has a meaning, and for short trainings. Squares may have
    other sides, as in `detr_transform`.
    """
    return RandomFlip(plain_transform(imgsz, shape, offsets))


def plain_transform(
    imgsz: int, shape: InputShape = ANY_SHAPE, offsets: Sequence[int] = (0,)
) -> Resize:
    """Return the resize of validation. Squares may have other sides, as in `detr_transform`."""
    if shape.square:
        return SquareResize(shape.sides(imgsz, offsets))
    return val_transform(imgsz, shape)


def val_transform(imgsz: int, shape: InputShape = ANY_SHAPE) -> Resize:
    """Return the resize of validation, prediction and export.

    It resizes the shortest side to ``imgsz``, the longest to at most 1333/800 of it, or the image
    to a square of ``imgsz``.
    """
    if shape.square:
        return SquareResize([shape.round(imgsz)])
    return RandomResize([scale_length(IMGSZ, imgsz)], scale_length(LONGEST, imgsz), shape.divisor)


def largest_sizes(
    height: int,
    width: int,
    imgsz: int,
    augment: str,
    shape: InputShape = ANY_SHAPE,
    offsets: Sequence[int] = (0,),
) -> list[tuple[int, int]]:
    """Return the largest (height, width) that an image of this size can have after augmentation.

    With "lsj" this is the square, otherwise the size in validation. With "detr" the sizes of the
    widest and of the highest crop are added. No random draw is higher, is wider or has more pixels
    than all of these. For squares it is the largest of their sides.
    """
    if augment == "lsj":
        side = lsj_side(imgsz, shape)
        return [(side, side)]
    if shape.square:
        side = max(shape.sides(imgsz, offsets))
        return [(side, side)]
    shapes = [(height, width)]
    if augment == "detr" and is_cropped(height, width):
        # The resize before the crop makes both sides at least as long as `max_size`, so these
        # crops exist for every image that is cropped.
        min_size, max_size = (scale_length(pixels, imgsz) for pixels in CROP)
        shapes += [(min_size, max_size), (max_size, min_size)]
    resize = val_transform(imgsz, shape)
    return [resize.size(*size, Generator()) for size in shapes]
