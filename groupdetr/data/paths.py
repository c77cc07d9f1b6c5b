"""The name of a dataset, and the paths of its image files.

No file name may lead out of the image folder, and links are reported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from groupdetr.data.findings import Findings, printable


def dataset_name(data: Path) -> str:
    """Return what a dataset is called in titles and in the names of folders.

    It is the name of its folder, also for ".", or that of its annotation file without the ending.
    """
    absolute = Path(os.path.abspath(data))
    return absolute.stem if absolute.is_file() else absolute.name


class ImageFolder:
    """The folder that must hold the images of a split."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parts = Path(os.path.abspath(folder)).parts
        self._real_folder = os.path.realpath(folder)
        # subfolder -> whether it lies inside the folder when links are followed
        self._inside_by_parent: dict[Path, bool] = {}

    def locate(self, file_name: str, record: str, findings: Findings) -> Path | None:
        """Return the path of an image. If the name is refused, return None and add a finding.

        The file need not exist.
        """
        if refused := refused_name(file_name, "the image folder"):
            code, problem = refused
            findings.add(code, record, f"file_name {printable(file_name)} {problem}")
            return None
        name = PurePosixPath(with_slashes(file_name))
        path = self.folder / self._without_folder(name)
        # A link out of the folder is only a warning: somebody made it on purpose, for example
        # because large files are kept in a separate store.
        if not self._is_inside(path):
            what = f"{printable(file_name)} is a link out of the image folder"
            findings.add("linked-outside", record, what)
        if "\\" in file_name:
            findings.add("backslash", record, f"file_name {printable(file_name)} has backslashes")
        return path

    def _without_folder(self, name: PurePosixPath) -> PurePosixPath:
        """Return the name without the image folder in front.

        Many tools write names relative to the dataset: ``images/a.jpg`` in the folder ``images``
        is ``a.jpg``.
        """
        for n in range(len(name.parts) - 1, 0, -1):
            if name.parts[:n] == self._parts[-n:] and not os.path.exists(self.folder / name):
                return PurePosixPath(*name.parts[n:])
        return name

    def _is_inside(self, path: Path) -> bool:
        """True if the path lies inside the folder when links are followed.

        The parent is resolved once for all of its files; after that, only files that are links
        need their path resolved.
        """
        if path.parent not in self._inside_by_parent:
            self._inside_by_parent[path.parent] = self._resolves_inside(path.parent)
        if not self._inside_by_parent[path.parent]:
            return False
        return not os.path.islink(path) or self._resolves_inside(path)

    def _resolves_inside(self, path: Path) -> bool:
        real = os.path.realpath(path)
        prefix = self._real_folder.rstrip(os.sep) + os.sep
        return real == self._real_folder or real.startswith(prefix)


# Parts of names that are not those of an ordinary file below the folder: backslashes, names that
# lead out of it or have a drive of Windows, empty and long ones, and characters without meaning.
_UNUSUAL = re.compile(
    r"[\\\0\ud800-\udfff]|^[\s./]*$|^\.*/|/$|(^|/)\.\.(/|$)|^[A-Za-z]:|^.{200}", re.DOTALL
)


# Names of letters, digits, "_", "-" and ".", which begin with none of the latter two.
_ORDINARY = re.compile(r"(?:\w[\w.-]{0,150}\n)*", re.ASCII)


def are_ordinary(file_names: Sequence[str]) -> bool:
    """Return whether all names are so simple that no rule of `refused_name` can apply to them.

    It takes a tenth of the time of `is_unusual`, which knows more names that can be used.
    """
    lines = "".join(name + "\n" for name in file_names)
    # More lines than names: a name has a line break of its own.
    return lines.count("\n") == len(file_names) and _ORDINARY.fullmatch(lines) is not None


def is_unusual(file_name: str) -> bool:
    """Return whether a name has backslashes, or may be one that `refused_name` refuses.

    It takes a fraction of a microsecond, for tables of a million names.
    """
    return _UNUSUAL.search(file_name) is not None


def refused_name(file_name: str, folder: str) -> tuple[str, str] | None:
    """Return the code of a finding and the problem of a file name; None if it can be used.

    ``folder`` is what messages call the folder that the name is relative to.
    """
    if problem := _name_problem(file_name):
        return "bad-file-name", problem
    if _leaves_folder(PurePosixPath(with_slashes(file_name))):
        return "path-outside", f"leads out of {folder}"
    return None


def with_slashes(file_name: str) -> str:
    """Return a file name with the separators of folders that all systems know."""
    return file_name.replace("\\", "/")


def _leaves_folder(name: PurePosixPath) -> bool:
    is_windows_drive = re.match(r"[A-Za-z]:(/|$)", str(name)) is not None
    if os.name == "nt":
        # There, C:a.jpg is a file in the current folder of that drive.
        is_windows_drive = bool(PureWindowsPath(name).drive)
    return name.is_absolute() or ".." in name.parts or is_windows_drive


def _name_problem(name: str) -> str:
    """Return why a text cannot be a file name, or an empty text if it can."""
    if not name.strip() or not PurePosixPath(name).name:
        return "is empty"
    if "\0" in name:
        return "holds a NUL character"
    try:
        parts = os.fsencode(with_slashes(name)).split(b"/")
    except UnicodeEncodeError:
        return "cannot be written as a file name"
    lengths = [len(part) for part in parts]
    return "is too long" if max(lengths) > 255 or sum(lengths) > 2000 else ""
