"""Pictures: whatever is on disk, as RGB, the way the annotations saw it.

Pillow reads them all. For training, an ordinary JPEG is decoded by simplejpeg where it is installed (the extra
``fast``): the same pixels in 70 to 85 % of the time.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from groupdetr.data.findings import Finding, RefusedError

try:
    from simplejpeg import decode_jpeg
except ImportError:
    decode_jpeg = None

# Pictures only: Pillow would hand an EPS file of any name to Ghostscript.
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
    "TGA",
)
_ORIENTATION = 0x0112  # EXIF tag


def load_image(path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """The picture as RGB, 8 bits; of an animation, the first frame.

    ``size`` is the recorded (width, height). A picture that its EXIF orientation turns is turned if only then it has
    that size, since then the boxes were drawn on the turned picture; without ``size`` it is turned always.
    """
    with opened(path) as image:
        return _seen(image, size, path).copy()


def load_pixels(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The pixels of what `load_image` gives, [H,W,3]."""
    with opened(path) as image:
        if decode_jpeg and (image.format, image.mode, image.size) == ("JPEG", "RGB", size):
            with suppress(
                ValueError
            ):  # there is something odd about it: Pillow knows what to make of that, or to say
                return decode_jpeg(path.read_bytes(), strict=True)
        return np.array(_seen(image, size, path))


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the picture as people see it, EXIF orientation applied, from its header."""
    with opened(path) as image:
        return _turned_size(image)


def examine(path: Path, size: tuple[int, int], decode: bool = True) -> str:
    """Refuse a picture that cannot be loaded at its recorded size; otherwise the code of a warning, or nothing."""
    with opened(path) as image:
        turn = _must_turn(image, size, path)
        either_fits = _orientation(image) != 1 and _turned_size(image) == image.size
        if decode:
            image.draft("RGB", (1, 1))  # a JPEG at an eighth of its size: every byte is still read
            _rgb(image).load()
    return "exif-turned" if turn else "exif-ambiguous" if either_fits else ""


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The picture with its header read. Whatever goes wrong with the file within the block refuses the file."""
    _require_regular_file(path)
    try:
        # Not by its name: then Pillow maps raw TIFF data into memory, and scrambles it where EXIF turns the picture.
        with path.open("rb") as file, Image.open(file, formats=_formats()) as image:
            yield image
    except RefusedError:
        raise
    except UnidentifiedImageError:
        raise _refused("not-an-image", path, "it is not a picture of a known format") from None
    except Image.DecompressionBombError:
        raise _refused(
            "image-too-large",
            path,
            f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels",
        ) from None
    except Exception as error:  # plugins raise whatever they like on broken bytes
        cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        code, what = (
            ("truncated-image", "the file ends too early")
            if cut
            else ("unreadable-image", "it cannot be decoded")
        )
        raise _refused(code, path, f"{what} ({error or type(error).__name__})") from error


def _require_regular_file(path: Path) -> None:
    """Look before opening: opening a FIFO waits for ever."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        why = (
            ""
            if isinstance(error, FileNotFoundError)
            else f" ({getattr(error, 'strerror', error)})"
        )
        raise _refused("missing-file", path, f"there is no such picture{why}") from None
    if not stat.S_ISREG(status.st_mode):
        raise _refused(
            "not-a-file", path, "it is a folder" if path.is_dir() else "it is not an ordinary file"
        )
    if status.st_size == 0:
        raise _refused("empty-file", path, "it is empty (0 bytes)")


def _refused(code: str, path: Path, what: str) -> RefusedError:
    return RefusedError(Finding(code, str(path), "", what))


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(
        name for name in _FORMATS if name in Image.OPEN
    )  # AVIF depends on how Pillow was built


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (as stored) to 8; from 5 on the picture lies on its side."""
    if image.format == "TIFF":  # Pillow turns these by itself
        return 1
    if (
        image.format == "PNG"
    ):  # EXIF may follow the pixels, which must not be taken for broken EXIF if they are broken
        image.load()
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF is no reason to lose a picture
        return 1
    return value if value in range(1, 9) else 1


def _turned_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _must_turn(image: Image.Image, size: tuple[int, int] | None, path: Path) -> bool:
    if size is None:
        return _orientation(image) != 1
    if size == image.size:
        return False
    if size != _turned_size(image):
        (w, h), (width, height) = size, image.size
        raise _refused(
            "size-mismatch",
            path,
            f"the picture is {width} x {height} pixels, recorded are {w} x {h}",
        )
    return True


def _seen(image: Image.Image, size: tuple[int, int] | None, path: Path) -> Image.Image:
    """As RGB, turned as it must be."""
    return _rgb(ImageOps.exif_transpose(image) if _must_turn(image, size, path) else image)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = _on_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grayscale of more than 8 bits, or of floats, scaled to 0..255 by the range of its format.

    Not by the range that this picture uses: the same tissue must look the same in a dark and in a bright picture.
    Formats that do not tell their range are taken to have the smallest usual one that holds the values.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    ranges = {"I": (255.0, 65535.0), "F": (1.0, 255.0, 65535.0)}.get(image.mode, (65535.0,))
    largest = values.max(initial=0.0)
    full = next((r for r in ranges if largest <= r), largest)
    return Image.fromarray((np.clip(values / full, 0, 1) * 255).round().astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    """What an annotation tool shows of a transparent picture; one that is transparent all over is taken as opaque."""
    if image.getchannel("A").getextrema()[1] == 0:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
