"""Decoding of image files to RGB of 8 bits, in the orientation in which they were annotated.

Pillow reads all formats, HEIF if pi-heif is installed (the extra ``heif``). For training, an
ordinary JPEG is decoded by simplejpeg if it is installed (the extra ``fast``): the same pixels in
70 to 85 % of the time.
"""

from __future__ import annotations

import errno
import importlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL import __version__ as PILLOW_VERSION

from groupdetr.data.findings import RefusedError, printable, refused
from groupdetr.files.kinds import is_lfs_pointer

try:
    from simplejpeg import decode_jpeg
except ImportError:
    decode_jpeg = None

# Image formats only. Without the list, Pillow would run Ghostscript on an EPS file of any name.
_FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "BMP",
    "DIB",
    "GIF",
    "WEBP",
    "TIFF",
    "PPM",
    "JPEG2000",
    "AVIF",
    "HEIF",
    "TGA",
)
# What follows the length and "ftyp" at the beginning of a HEIF file.
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_ORIENTATION = 0x0112  # EXIF tag
# Errors of the system for files that exist: no permission, a broken drive, too many open files.
_UNREADABLE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE)
_TOLERANCE = 1.001  # of the largest value of an image, as a factor of white


class PixelValueError(ValueError):
    """The values of an image do not tell which of them is white."""


def load_image(
    path: Path, size: tuple[int, int] | None = None, upright: bool = False
) -> Image.Image:
    """Return the image as RGB, 8 bits. Of an animation, return the first frame.

    ``size`` is the recorded (width, height). The EXIF orientation is applied only if the image has
    that size with it and not without it, because then the boxes were drawn on the rotated image.
    With ``upright`` it is also applied if the image has that size in both cases. Without ``size``
    it is always applied.
    """
    with open_image(path) as image:
        return _oriented_rgb(image, size, path, upright).copy()


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return an open image as `load_image` returns that of a file without ``size``, as a copy.

    `PixelValueError` if its values do not tell which of them is white, and any other exception if
    Pillow cannot decode it.
    """
    return _oriented_rgb(image, None, Path()).copy()


def load_pixels(path: Path, size: tuple[int, int], upright: bool = False) -> NDArray[np.uint8]:
    """Return the pixels of the image that `load_image` returns, [H,W,3]."""
    with open_image(path) as image:
        is_plain_jpeg = (image.format, image.mode, image.size) == ("JPEG", "RGB", size)
        if decode_jpeg and is_plain_jpeg and not _needs_orientation(image, size, path, upright):
            # On a ValueError the file is unusual; Pillow can read it or explain the problem.
            with suppress(ValueError):
                return decode_jpeg(path.read_bytes(), strict=True)
        return np.array(_oriented_rgb(image, size, path, upright))


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) after the EXIF orientation is applied. Only the header is read."""
    with open_image(path) as image:
        return _oriented_size(image)


def max_pixels() -> float:
    """Return the number of pixels up to which Pillow opens an image."""
    return 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else float("inf")


def check_image(path: Path, size: tuple[int, int], decode: bool = True) -> str:
    """Raise `RefusedError` if an image cannot be loaded at its recorded size.

    Otherwise return the code of a warning, or "". Without ``decode`` only the header is read.
    """
    with open_image(path) as image:
        apply_orientation = _needs_orientation(image, size, path)
        both_sizes_fit = _orientation(image) != 1 and _oriented_size(image) == image.size
        if decode:
            # A JPEG is decoded at an eighth of its size; every byte is still read.
            image.draft("RGB", (1, 1))
            _rgb(image).load()
    if apply_orientation:
        return "exif-rotated"
    return "exif-ambiguous" if both_sizes_fit else ""


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image and read its header.

    Any problem with the file inside the ``with`` block is raised as a `RefusedError`.
    """
    expect_image_file(path)  # Opening a FIFO would block for ever.
    try:
        # The file is passed, not its name. With a name, Pillow maps raw TIFF data into memory, and
        # the pixels are scrambled if EXIF rotates the image.
        with path.open("rb") as file, Image.open(file, formats=_formats()) as image:
            yield image
    except RefusedError:
        raise
    except PixelValueError as error:
        raise refused("value-range", path, str(error)) from None
    except UnidentifiedImageError:
        raise _not_an_image(path) from None
    except Image.DecompressionBombError:
        what = f"it has more than {max_pixels():,} pixels"
        raise refused("image-too-large", path, what) from None
    except FileNotFoundError:  # it was deleted a moment ago
        raise refused("missing-file", path, "there is no such image") from None
    except Exception as error:  # Pillow's plugins raise any exception on broken bytes
        if isinstance(error, OSError) and error.errno is not None:
            what = f"the system cannot read it ({error.strerror})"
            raise refused("unreadable-file", path, what) from error
        reason = error or type(error).__name__
        if isinstance(error, EOFError) or "truncated" in str(error).lower():
            what = f"the file ends too early ({reason})"
            raise refused("truncated-image", path, what) from error
        what = f"it cannot be decoded ({reason})"
        raise refused("unreadable-image", path, what) from error


def expect_image_file(path: Path) -> None:
    """Raise `RefusedError` unless there is an ordinary file with content. It is not opened."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        if getattr(error, "errno", None) in _UNREADABLE:
            what = f"the system cannot read it ({reason})"
            raise refused("unreadable-file", path, what) from None
        remark = "" if isinstance(error, FileNotFoundError) else f" ({reason})"
        raise refused("missing-file", path, f"there is no such image{remark}") from None
    if not stat.S_ISREG(status.st_mode):
        what = "it is a folder" if path.is_dir() else "it is not an ordinary file"
        raise refused("not-a-file", path, what)
    if status.st_size == 0:
        raise refused("empty-file", path, "it is empty (0 bytes)")


def _not_an_image(path: Path) -> RefusedError:
    """Return the error for a file of no known format. It tells what the file is, if it is clear."""
    if path.name.startswith("._"):
        what = f"it is not an image, but what macOS writes beside {printable(path.name[2:])}"
        return refused("not-an-image", path, what)
    head = b""
    with suppress(OSError), path.open("rb") as file:
        head = file.read(100)
    if is_lfs_pointer(head):
        return refused("lfs-pointer", path, "it is a pointer of Git LFS, not the file itself")
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and "HEIF" not in _formats():
        return refused("heif", path, "it is a HEIF image, and pi-heif is not installed")
    return refused("not-an-image", path, "it is not an image of a known format")


def decoder_state() -> list[object]:
    """Return what decides, apart from an image file, whether it can be loaded."""
    return [PILLOW_VERSION, Image.MAX_IMAGE_PIXELS, *_formats()]


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that this build of Pillow can read; AVIF and HEIF are optional."""
    Image.init()
    with suppress(ImportError):
        importlib.import_module("pi_heif").register_heif_opener()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (as stored) to 8. From 5 on, width and height are swapped."""
    if image.format == "TIFF":  # Pillow applies the orientation of these itself
        return 1
    if image.format == "PNG":
        # EXIF may follow the pixels. Broken pixels must raise here, outside of the try block, so
        # that they are not mistaken for broken EXIF.
        image.load()
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # an image with broken EXIF can still be used
        return 1
    return value if value in range(1, 9) else 1


def _oriented_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def is_turned(path: Path, size: tuple[int, int], upright: bool = False) -> bool | None:
    """Return whether `load_image` applies the EXIF orientation; None if the image has none."""
    with open_image(path) as image:
        if _orientation(image) == 1:
            return None
        return _needs_orientation(image, size, path, upright)


def _needs_orientation(
    image: Image.Image, size: tuple[int, int] | None, path: Path, upright: bool = False
) -> bool:
    """True if the EXIF orientation must be applied to get an image of the recorded ``size``."""
    if size is None or (upright and size == _oriented_size(image)):
        return _orientation(image) != 1
    if size == image.size:
        return False
    if size != _oriented_size(image):
        width, height = image.size
        recorded_width, recorded_height = size
        what = (
            f"the image is {width} x {height} pixels, "
            f"but {recorded_width} x {recorded_height} are recorded"
        )
        raise refused("size-mismatch", path, what)
    return True


def _oriented_rgb(
    image: Image.Image, size: tuple[int, int] | None, path: Path, upright: bool = False
) -> Image.Image:
    if _needs_orientation(image, size, path, upright):
        return _rgb(ImageOps.exif_transpose(image))
    return _rgb(image)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(to_bytes(np.asarray(image)))
    if image.mode == "La":  # Pillow converts it to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        image = _on_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def to_bytes(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Convert the values of an image, of any type of number, to 0..255.

    Bytes do not change. White is the largest value of a type: True, or 65535 of 16 bits. The values
    of this image do not decide, because the same tissue must look the same in a dark and in a
    bright image. Longer integers and floats do not record what white is. It is the smallest usual
    value that holds all values of the image: 255 or 65535, for floats also 1.

    `PixelValueError` if values are negative or not finite, or if it is not clear what white is.
    """
    if values.dtype == np.uint8:
        return values.view(np.uint8)
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise PixelValueError("it has values that are not finite")
    smallest, largest = numbers.min(initial=0.0), numbers.max(initial=0.0)
    # Floats just below black are those of interpolation.
    tolerance = (_TOLERANCE - 1) * largest if values.dtype.kind == "f" else 0.0
    if smallest < -tolerance:
        raise PixelValueError(f"its values are from {smallest:g} to {largest:g}")
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        white = 65535.0
    elif values.dtype.kind == "f":
        white = _white_of_floats(largest)
    else:
        white = 255.0 if largest <= 255 else 65535.0
    if largest > white * _TOLERANCE:
        raise PixelValueError(f"its largest value is {largest:g}")
    scaled = np.clip(numbers / white, 0, 1) * 255
    return scaled.round().astype(np.uint8)


def _white_of_floats(largest: float) -> float:
    """Return the value that is white in an image of floats whose largest value is ``largest``."""
    for white, next_white in ((1.0, 255.0), (255.0, 65535.0)):
        # Values just above white are those of interpolation.
        if largest <= white * _TOLERANCE:
            return white
        if largest <= 2 * white:
            raise PixelValueError(
                f"its largest value is {largest:g}, so white may be {white:g} or {next_white:g}"
            )
    return 65535.0


def _on_white(image: Image.Image) -> Image.Image:
    """Return a transparent image on white, as annotation tools show it.

    An image that is transparent everywhere is treated as opaque.
    """
    largest_alpha = image.getchannel("A").getextrema()[1]
    if largest_alpha == 0:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
