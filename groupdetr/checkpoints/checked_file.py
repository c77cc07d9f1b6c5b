"""A file of torch.save with a checksum of all its bytes, and its check.

torch.load does not notice most changed bits. The file is a zip archive, and the checksum is the
comment at its end, which torch.load does not read.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import torch

MARK = b"groupdetr sha256 "
COMMENT_LENGTH = len(MARK) + 64  # 64 hexadecimal digits
CHUNK = 2**20


class DamagedError(Exception):
    """A file that is not whole. The message says in what way, as a part of a sentence."""


class _HashingFile:
    """Passes what is written to a file, and computes the checksum of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.checksum = hashlib.sha256()

    def write(self, content: Any) -> int:
        self.checksum.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def save(content: object, file: IO[bytes]) -> None:
    """Write ``content`` with torch.save to an open file, and the checksum of it at the end."""
    hashing = _HashingFile(file)
    torch.save(content, hashing)  # type: ignore[arg-type]
    # The last two bytes of a zip archive are the length of its comment. They were zero.
    file.seek(-2, 2)
    file.write(COMMENT_LENGTH.to_bytes(2, "little"))
    file.write(MARK + hashing.checksum.hexdigest().encode())


def check(path: Path) -> None:
    """Raise `DamagedError` unless a file has all bytes that `save` wrote.

    A file of torch.save without a checksum is checked with those that its archive has.
    """
    size = path.stat().st_size
    if size == 0:
        raise DamagedError("it is empty")
    with path.open("rb") as file:
        if size > COMMENT_LENGTH:
            file.seek(-COMMENT_LENGTH, 2)
            comment = file.read()
            if comment.startswith(MARK):
                _check_sum(file, size, comment)
                return
    _check_archive(path)


def _check_sum(file: IO[bytes], size: int, comment: bytes) -> None:
    file.seek(0)
    checksum = hashlib.sha256()
    remaining = size - COMMENT_LENGTH - 2
    while remaining > 0:
        content = file.read(min(CHUNK, remaining))
        if not content:
            break
        checksum.update(content)
        remaining -= len(content)
    length = file.read(2)
    checksum.update(b"\0\0")
    expected = MARK + checksum.hexdigest().encode()
    if remaining or comment != expected or int.from_bytes(length, "little") != COMMENT_LENGTH:
        raise DamagedError("its checksum is wrong")


def _check_archive(path: Path) -> None:
    """Check a file without a checksum of its own."""
    cut_off = DamagedError("it is cut off, or it is not a file of torch.save")
    try:
        with zipfile.ZipFile(path) as archive:
            # The comment of a whole file is a checksum, or there is none.
            if archive.comment or archive.testzip() is not None:
                raise DamagedError("its checksum is wrong")
        with path.open("rb") as file:
            file.seek(-22, 2)
            end = file.read()
        # The end of an archive without a comment: its signature first, and no length at the end.
        if not (end.startswith(b"PK\x05\x06") and end.endswith(b"\0\0")):
            raise cut_off
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, zlib.error) as error:
        raise cut_off from error
    except (RuntimeError, OSError, KeyError, IndexError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise cut_off from error
