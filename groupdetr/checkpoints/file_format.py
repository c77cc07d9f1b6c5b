"""The format number of the files that this library writes: ``best.safetensors`` and ``last.pt``.

The number rises when the names of tensors, or the meaning of what is stored, change. A file with
another number is refused, because it would load wrongly or with an error that explains nothing.
"""

from __future__ import annotations

from groupdetr.errors import UsageError
from groupdetr.structures.json_object import JsonObject
from groupdetr.version import __version__

FORMAT = 1
MAX_SHOWN = 60  # characters of a value in a file that an error message repeats
KEY = "groupdetr"  # the entry of a file that holds what `file_stamp` returns


def file_stamp() -> JsonObject:
    """Return what every file of this library carries: the format number and the version."""
    return {"format": FORMAT, "version": __version__}


def require_format(stamp: JsonObject, where: str, remedy: str, error: type[UsageError]) -> None:
    """Raise ``error`` unless a file with this ``stamp`` has the format that this version reads.

    ``where``: the file. ``remedy``: what to do about a file without a number, which was written
    before there was one.
    """
    number = stamp.get("format")
    if number is None:
        raise error(
            "this file was written by groupdetr before 0.1.0 (it has no format number)",
            where,
            remedy,
        )
    if number != FORMAT:
        version = str(stamp.get("version", "nothing about it"))
        raise error(
            f"this file has format {str(number)[:MAX_SHOWN]}, and groupdetr {__version__} reads "
            f"format {FORMAT}",
            where,
            f"install the version of groupdetr that wrote it: the file says {version[:MAX_SHOWN]}",
        )
