"""Errors that a user can act on: what went wrong, where, and what to type.

These are the only exceptions that reach a user. Each has its exit code.
"""

from __future__ import annotations

from collections.abc import Sequence


class GroupDETRError(Exception):
    """An error that a user can act on.

    ``what`` is one line. ``where`` names the file and the record. ``remedy`` is what to do or type.
    """

    exit_code = 1

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__("\n".join(line for line in (what, where, remedy) if line))


class UsageError(GroupDETRError):
    """A command, option or argument that cannot be used."""

    exit_code = 2


class DataError(GroupDETRError):
    """A dataset that would break or mislead training."""

    exit_code = 3


def unreadable_inputs(failed: Sequence[DataError], total: int, noun: str) -> DataError:
    """Return the error for inputs that could not be read, while the others were processed.

    ``noun`` names what the ``total`` inputs are, in the plural: images, samples.
    """
    what = f"{len(failed)} of {total} {noun} could not be read; the others are done"
    where = "\n".join(error.where for error in failed[:10])
    return DataError(what, where, failed[0].remedy)


class DivergedError(GroupDETRError):
    """A loss, cost or gradient that is not finite."""

    exit_code = 4


class WeightsError(UsageError):
    """A checkpoint that does not fit the model, or has no known layout."""
