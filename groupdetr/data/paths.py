"""From the file name of a record to a path: no name leads out of the image folder, and links that do are told."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from groupdetr.data.findings import Findings, shown


class ImageFolder:
    """The folder that the pictures of a split must lie in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parts = Path(os.path.abspath(folder)).parts
        self._real = os.path.realpath(folder)
        self._parents: dict[Path, bool] = {}  # whether a subfolder, links followed, lies inside

    def locate(self, file_name: str, record: str, found: Findings) -> Path | None:
        """The path of a picture; None, and a finding, where the name is refused. The file need not exist."""
        if problem := _name_problem(file_name):
            found.add("bad-file-name", record, f"file_name {shown(file_name)} {problem}")
            return None
        name = PurePosixPath(file_name.replace("\\", "/"))
        path = self.folder / self._without_folder(name)
        if _leaves(name):
            found.add(
                "path-outside",
                record,
                f"file_name {shown(file_name)} leads out of the image folder",
            )
            return None
        if not self._holds(
            path
        ):  # as where large files are kept in a store: somebody put the link there on purpose
            found.add(
                "linked-outside", record, f"{shown(file_name)} is a link out of the image folder"
            )
        if "\\" in file_name:
            found.add("backslash", record, f"file_name {shown(file_name)} has backslashes")
        return path

    def _without_folder(self, name: PurePosixPath) -> PurePosixPath:
        """``images/a.jpg`` of the folder ``images`` is ``a.jpg``: many tools write names relative to the data set."""
        for n in range(len(name.parts) - 1, 0, -1):
            if name.parts[:n] == self._parts[-n:] and not os.path.exists(self.folder / name):
                return PurePosixPath(*name.parts[n:])
        return name

    def _holds(self, path: Path) -> bool:
        """Whether the path stays inside when links are followed; only links cost a look at every component."""
        if path.parent not in self._parents:
            self._parents[path.parent] = self._inside(path.parent)
        return self._parents[path.parent] and (not os.path.islink(path) or self._inside(path))

    def _inside(self, path: Path) -> bool:
        real = os.path.realpath(path)
        return real == self._real or real.startswith(self._real.rstrip(os.sep) + os.sep)


def _leaves(name: PurePosixPath) -> bool:
    return name.is_absolute() or ".." in name.parts or bool(re.match(r"[A-Za-z]:(/|$)", str(name)))


def _name_problem(name: str) -> str:
    """What keeps a text from being a file name, or nothing."""
    if not name.strip() or not PurePosixPath(name).name:
        return "is empty"
    if "\0" in name:
        return "holds a NUL character"
    try:
        parts = os.fsencode(name.replace("\\", "/")).split(b"/")
    except UnicodeEncodeError:
        return "cannot be written as a file name"
    return "is too long" if max(map(len, parts)) > 255 or sum(map(len, parts)) > 2000 else ""
