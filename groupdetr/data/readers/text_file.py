"""Text files of datasets: lists of images, labels, names of classes."""

from __future__ import annotations

from pathlib import Path

from groupdetr.data.findings import refused

_MAX_BYTES = 1 << 28  # more than the list of any dataset; a wrong file is not read whole


def read_text(file: Path) -> str:
    """Return the content of a text file in UTF-8, with or without a byte order mark.

    Raises `RefusedError` if it cannot be read.
    """
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise refused("unreadable-text", file, f"it has more than {_MAX_BYTES:,} bytes")
        content = file.read_bytes()
    except OSError as error:
        raise refused("unreadable-text", file, f"it cannot be read ({error.strerror})") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refused(
            "unreadable-text", file, f"it is not text in UTF-8 (byte {error.start})"
        ) from None
    if "\0" in text:
        raise refused("unreadable-text", file, "it is not text: it has NUL characters")
    return text


def read_lines(file: Path) -> list[str]:
    """Return the lines of a text file, with the line ends of any system removed."""
    return read_text(file).replace("\r\n", "\n").replace("\r", "\n").split("\n")
