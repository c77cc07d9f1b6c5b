"""Files that would be replaced, and folders that are to be written to.

An output may lead to the input itself, or to files of the user that happen to have the same names.
Then nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from groupdetr.errors import UsageError

MAX_LISTED = 5  # files that a message lists


def expect_replaceable(files: Iterable[Path], is_own: Callable[[Path], bool], remedy: str) -> None:
    """Raise `UsageError` if a file exists that the command did not write.

    ``is_own`` returns True for a file that an earlier run of the command wrote.
    """
    foreign = [file for file in files if os.path.lexists(file) and not is_own(file)]
    if not foreign:
        return
    if len(foreign) == 1:
        what = "this file would be replaced, and the command did not write it"
        if foreign[0].is_dir():
            what = "there is a folder where a file is to be written"
    else:
        what = f"{len(foreign)} files would be replaced that the command did not write"
    where = [str(file) for file in foreign[:MAX_LISTED]]
    if len(foreign) > MAX_LISTED:
        where.append(f"and {len(foreign) - MAX_LISTED} more")
    raise UsageError(what, "\n".join(where), remedy)


def expect_folder(path: Path) -> None:
    """Raise `UsageError` if a path cannot be a folder, because it or a part of it is a file."""
    for part in (path, *path.parents):
        if os.path.lexists(part):
            if not part.is_dir():
                kind = "a link that leads nowhere" if part.is_symlink() else "a file"
                raise UsageError(
                    f"the output folder cannot be created, because this is {kind}",
                    str(part),
                    "choose another folder with --out",
                )
            return


def same_file(first: Path, second: Path) -> bool:
    """True if two paths lead to the same file or folder, over links or in other letters.

    False if one of them does not exist.
    """
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):
        return False
