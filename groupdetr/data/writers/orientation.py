"""The EXIF orientation of an image file, removed without a change of its pixels, or applied."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

from PIL import ImageOps

from groupdetr.data.image_decoding import open_image

_ORIENTATION = 0x0112  # EXIF tag
_SHORT, _LONG = 3, 4  # types of its value
_PREFIX = b"Exif\0\0"
_QUALITY = 95  # of JPEG files that are encoded again


def without_orientation(path: Path) -> bytes | None:
    """Return the content of an image file with the EXIF orientation 1: as the pixels are stored.

    Nothing else changes, so no quality is lost. None if the file has its orientation in another
    place than a block of EXIF, which then would have to be encoded anew.
    """
    with open_image(path) as image:
        image.load()  # A PNG file may have EXIF behind its pixels.
        block = bytes(image.info.get("exif", b"")).removeprefix(_PREFIX)
        is_png = image.format == "PNG"
    content = bytearray(path.read_bytes())
    changed = _with_orientation_1(block)
    if changed is None or content.count(block) != 1:
        return None
    start = content.index(block)
    content[start : start + len(block)] = changed
    if is_png:
        # The checksum behind a chunk is that of its type and its content.
        checksum = zlib.crc32(content[start - 4 : start + len(block)])
        content[start + len(block) : start + len(block) + 4] = struct.pack(">I", checksum)
    return bytes(content)


def turned(path: Path) -> bytes:
    """Return the content of an image file whose pixels are turned by its EXIF orientation."""
    with open_image(path) as image:
        upright = ImageOps.exif_transpose(image)
        buffer = io.BytesIO()
        upright.save(buffer, image.format, quality=_QUALITY, exif=upright.getexif())
    return buffer.getvalue()


def _with_orientation_1(block: bytes) -> bytes | None:
    """Return a block of EXIF (in the format of TIFF) with the orientation 1, None without one."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, directory)
        for index in range(count):
            entry = directory + 2 + 12 * index
            tag, kind, _ = struct.unpack_from(f"{order}HHI", block, entry)
            if tag == _ORIENTATION and kind in (_SHORT, _LONG):
                changed = bytearray(block)
                struct.pack_into(f"{order}{'H' if kind == _SHORT else 'I'}", changed, entry + 8, 1)
                return bytes(changed)
    except struct.error:  # a damaged block
        return None
    return None
