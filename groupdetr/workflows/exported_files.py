"""Exported files in the place of a run: which options they cannot follow, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from groupdetr.errors import UsageError
from groupdetr.files.kinds import EXPORTED_ENDINGS

# Why an exported file cannot follow an option
ONE_GROUP = "it has one group of queries"
OWN_PRECISION = "it computes in the precision that it was exported with"
NO_SCENES = "it takes images, and no scenes"


def is_exported(source: Path) -> bool:
    """True if a path has the ending of a file that `groupdetr export` writes for a runtime."""
    return source.suffix in EXPORTED_ENDINGS


def expect_usable_with_exported_file(
    file: Path, options: Mapping[str, tuple[bool, str]], device: str, do_it: str
) -> None:
    """Raise `UsageError` for an option that only runs and weights have, or for another device.

    ``options`` are the names of options, whether they were given, and why a file cannot follow
    them. ``do_it`` says what the command does with a run, for the remedy: "predict with" or
    "evaluate".
    """
    remedy = f"{do_it} the run that was exported"
    for flag, (is_given, reason) in options.items():
        if is_given:
            raise UsageError(
                f"{flag} is for runs and weights files, and not for an exported file: {reason}",
                str(file),
                f"leave out {flag}, or {remedy}",
            )
    if device not in ("auto", "cpu"):
        raise UsageError(
            f"an exported file is run on the CPU here, and not on {device!r}",
            str(file),
            f"leave out --device, or {remedy}",
        )
