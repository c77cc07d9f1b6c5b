"""Writing files so that a process or a machine that stops, or a full disk, loses nothing."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from groupdetr.errors import GroupDETRError, UsageError

DRAFT = re.compile(r"\.(.+)\.\d+\.part")  # the name of the file, and the id of the process
DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


class WriteError(UsageError):
    """A file that could not be written, for example because the disk is full."""


def write_atomically(
    path: Path, write: Callable[[IO[bytes]], object], survives_power_loss: bool = True
) -> None:
    """Write a file so that it always holds its former or its new content in full.

    That is true even if the machine stops at any time. Without ``survives_power_loss`` it is true
    if only the process stops, and the disk is not waited for: a few milliseconds for each file.
    ``write`` is called with an open file. `WriteError` if the system cannot write the file. Then no
    draft of it remains.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = draft_of(path)
        try:
            with draft.open("w+b") as file:
                write(file)
                file.flush()
                if survives_power_loss:
                    os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        if survives_power_loss:
            _sync_folder(path.parent)


def draft_of(path: Path) -> Path:
    """Return the file that this process writes before it takes the place of ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def remove_drafts(paths: Iterable[Path]) -> None:
    """Remove the drafts of these files, which a process has left that was killed.

    Files with other names are not touched.
    """
    for path in paths:
        if not path.parent.is_dir():
            continue
        for file in path.parent.iterdir():
            match = DRAFT.fullmatch(file.name)
            if match and match[1] == path.name:
                file.unlink(missing_ok=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an error of the system while ``path`` is written into a `WriteError`."""
    try:
        yield
    except GroupDETRError:
        raise
    except (OSError, RuntimeError) as error:
        cause = _system_error(error)
        if cause is None:
            raise
        raise write_error(path, cause) from error


def _system_error(error: BaseException | None) -> OSError | None:
    """Return the error of the system that caused ``error``, None if there is none.

    torch.save raises a RuntimeError of its own after an error of the file that it writes to.
    """
    while isinstance(error, RuntimeError):
        error = error.__cause__ or error.__context__
    return error if isinstance(error, OSError) else None


def write_error(path: Path, error: OSError) -> WriteError:
    """Return the error for a file that could not be written, with the free space of its disk."""
    reason = error.strerror or str(error) or type(error).__name__
    where = str(path)
    space = free_space(path)
    if space is not None:
        where += f" ({space / 2**20:,.0f} MiB are free on its disk)"
    if error.errno in DISK_FULL:
        remedy = "make room on this disk, or choose a folder on another one"
    else:
        remedy = "check the path, its permissions and the disk, or choose another folder"
    return WriteError(f"the file could not be written: {reason}", where, remedy)


def free_space(path: Path) -> int | None:
    """Return the free bytes of the disk of ``path``, None if they are not known."""
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _sync_folder(folder: Path) -> None:
    """Write the names of a folder to the disk, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
