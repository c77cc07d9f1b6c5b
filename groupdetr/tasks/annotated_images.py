"""Annotated images as files. A mark in them tells them from original images."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from PIL import Image

from groupdetr.data.findings import RefusedError
from groupdetr.data.image_decoding import open_image
from groupdetr.errors import DataError, UsageError
from groupdetr.files.writing import write_atomically

MARK = "groupdetr: annotated image"
_SOFTWARE = 0x0131  # EXIF tag
_JPEG_START = b"\xff\xd8"
_JPEG_HEAD = 4096  # bytes; `save_annotated` writes the EXIF data at the start of a JPEG file


def save_annotated(image: Image.Image, path: Path) -> None:
    """Write an annotated image, atomically. The ending of the name decides about the format.

    A link is replaced by the image; the file that it leads to does not change. It is not waited
    until the image is on the disk, because it can be made again from the original. `DataError` if
    the image does not fit into the format: a JPEG file has at most 65,500 pixels a side.
    """
    Image.init()
    image_format = Image.EXTENSION.get(path.suffix.lower())
    if image_format not in Image.SAVE:
        raise UsageError(
            f"no image can be written to a file with the ending {path.suffix!r}",
            str(path),
            "use .jpg or .png",
        )
    exif = Image.Exif()
    exif[_SOFTWARE] = MARK

    def write(file: IO[bytes]) -> None:
        try:
            image.save(file, format=image_format, exif=exif)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's plugins raise any exception for too many pixels
            if isinstance(error, OSError) and error.errno is not None:
                raise  # an error of the system, such as a full disk
            raise DataError(
                f"an image of {image.width} x {image.height} pixels cannot be written as "
                f"{image_format} ({error})",
                str(path),
                "use .png; the annotated copy of a PNG file is one, too",
            ) from error

    write_atomically(path, write, survives_power_loss=False)


def is_annotated(path: Path) -> bool:
    """True if a file is an image that `save_annotated` wrote. Only its header is read."""
    try:
        if path.is_file():  # opening a FIFO would block for ever
            with path.open("rb") as file:
                head = file.read(_JPEG_HEAD)
            if head.startswith(_JPEG_START):
                # A tenth of the time of Pillow, which matters in folders of many thousand images
                return MARK.encode() in head
        with open_image(path) as image:
            # `getexif` would decode a PNG file without EXIF.
            exif = image.info.get("exif", b"")
            if image.format == "TIFF":
                exif = str(image.getexif().get(_SOFTWARE, "")).encode()
    except (OSError, RefusedError):
        return False
    return MARK.encode() in exif
