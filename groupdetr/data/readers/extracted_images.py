"""Images of Parquet files, written to the cache folder, because training reads images from files.

The folder is in huggingface-hub's cache for other libraries, below ``HF_HOME``. Images are written
once for each version of a file: its path, size and time are part of the folder's name.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from groupdetr.data.findings import RefusedError, refused

_ENDINGS = {  # first bytes of an image -> ending of its file name
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"RIFF": ".webp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}
_COMPLETE = "complete"  # this file exists once all images of a Parquet file were written


class ExtractedImages:
    """The images of one Parquet file in the cache folder."""

    def __init__(self, file: Path) -> None:
        status = file.stat()
        version = f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
        digest = hashlib.sha256(version.encode("utf-8", "surrogateescape")).hexdigest()[:20]
        # Imported here: it takes a second, and other formats do not need it.
        from huggingface_hub import cached_assets_path, constants

        self.folder = Path(constants.HF_ASSETS_CACHE)  # for the message of an error
        try:
            self.folder = cached_assets_path(
                "groupdetr",
                namespace="parquet",
                subfolder=f"{file.stem[:40]}-{digest}",
                assets_dir=constants.HF_ASSETS_CACHE,
            )
        except OSError as error:
            raise self._refused(error) from None
        self._is_complete = (self.folder / _COMPLETE).is_file()

    def add(self, number: int, encoded: bytes) -> str:
        """Write one encoded image, and return its file name in the folder."""
        endings = (text for head, text in _ENDINGS.items() if encoded.startswith(head))
        name = f"{number:08}{next(endings, '.img')}"
        path = self.folder / name
        if self._is_complete and path.is_file() and path.stat().st_size == len(encoded):
            return name
        draft = path.with_name(f".{name}.{os.getpid()}.part")
        try:
            draft.write_bytes(encoded)
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise self._refused(error) from None
        return name

    def finish(self) -> None:
        """Mark the folder as complete, after all images were added.

        A complete folder is only read: it may be that of another user.
        """
        if self._is_complete:
            return
        try:
            (self.folder / _COMPLETE).touch()
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> RefusedError:
        what = f"images of a Parquet file cannot be written there ({error.strerror})"
        return refused("cache-folder", self.folder, what)
