"""The image files that an earlier check has found sound, kept in the cache folder.

Decoding the images of COCO takes minutes, and so does reading all of them to find copies. An image
file is not read again if its path, its size in bytes and the times of its last changes are those of
the earlier check. Only sound images are kept: a problem is looked at again in every check, because
it may be gone. The folder is in huggingface-hub's cache for other libraries, below ``HF_HOME``;
nothing is written beside the data. A folder that cannot be read or written counts as empty.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from groupdetr.data.image_decoding import decoder_state
from groupdetr.version import __version__

MIN_IMAGES = 1000  # of a dataset; fewer are checked in a second
FORMAT = 1  # of the file; raise it when the rules of `image_checks.py` change
# A file that was changed so recently may change again without another time: the times of some file
# systems have a resolution of two seconds.
_RECENT = 2_000_000_000  # nanoseconds


@dataclass(frozen=True)
class FileState:
    """What changes when somebody changes a file."""

    num_bytes: int
    content_time: int  # of the last change of the content, in nanoseconds
    change_time: int  # of the last change of the file, its permissions included

    @classmethod
    def from_path(cls, path: Path) -> FileState | None:
        """Return the state of a regular file, None if there is none at this path."""
        try:
            status = path.stat()
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def is_recent(self) -> bool:
        """True if the file was changed a moment ago."""
        latest = max(self.content_time, self.change_time)
        return latest > time.time_ns() - _RECENT


@dataclass(frozen=True)
class SoundImage:
    """An image file without a problem."""

    file: FileState
    size: tuple[int, int]  # recorded width and height in pixels
    is_decoded: bool  # False: only its header was read
    code: str = ""  # of a warning about its orientation, or ""
    digest: str = ""  # SHA-256 of the file; "" if it was not computed


class CheckedImages:
    """The sound images of a dataset whose images are in some folders.

    Several threads may use it. Without ``folders``, nothing is read and nothing is kept.
    """

    def __init__(self, folders: Iterable[Path] = ()) -> None:
        names = sorted({os.path.abspath(folder) for folder in folders})
        self._file = _cache_file(names) if names else None
        self._images: dict[str, SoundImage] = {}
        self._is_changed = False
        if self._file is not None:
            with suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
                self._images = _read(self._file)

    def find(self, path: Path, file: FileState | None) -> SoundImage | None:
        """Return what is known of an image file in its state ``file``, None if it is nothing."""
        known = self._images.get(os.path.abspath(path))
        return known if known is not None and known.file == file else None

    def add(self, path: Path, image: SoundImage) -> None:
        """Keep what a check has found out."""
        if self._file is not None and not image.file.is_recent():
            self._images[os.path.abspath(path)] = image
            self._is_changed = True

    def save(self) -> None:
        """Write what was added, where that is possible."""
        if self._file is None or not self._is_changed:
            return
        draft = self._file.with_name(f".{self._file.name}.{os.getpid()}.part")
        try:
            draft.write_text(json.dumps(_content(self._images)), encoding="utf-8")
            draft.replace(self._file)
        except OSError:
            draft.unlink(missing_ok=True)


def _cache_file(folders: list[str]) -> Path | None:
    """Return the file for the images in some folders, None if there is no folder for it."""
    digest = hashlib.sha256("\0".join(folders).encode("utf-8", "surrogateescape")).hexdigest()
    # Imported here: it takes a second, and small datasets do not need it.
    from huggingface_hub import cached_assets_path, constants

    try:
        folder = cached_assets_path(
            "groupdetr",
            namespace="checked-images",
            subfolder=digest[:20],
            assets_dir=constants.HF_ASSETS_CACHE,
        )
    except (OSError, ValueError):
        return None
    return folder / "images.json"


def _versions() -> list[object]:
    """Return what decides, apart from the files, whether images are sound."""
    return [FORMAT, __version__, *decoder_state()]


def _content(images: dict[str, SoundImage]) -> dict[str, object]:
    rows = {}
    for path, image in images.items():
        file = image.file
        rows[path] = [
            [file.num_bytes, file.content_time, file.change_time],
            image.size,
            image.is_decoded,
            image.code,
            image.digest,
        ]
    return {"versions": _versions(), "images": rows}


def _read(file: Path) -> dict[str, SoundImage]:
    """Return the images in a file; none if other versions have written it."""
    content = json.loads(file.read_text(encoding="utf-8"))
    if content["versions"] != _versions():
        return {}
    images = {}
    for path, (state, size, is_decoded, code, digest) in content["images"].items():
        width, height = size
        images[path] = SoundImage(FileState(*state), (width, height), is_decoded, code, digest)
    return images
