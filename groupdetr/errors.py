"""What went wrong, where, and what to type: the only exceptions that reach a user, each with its exit code."""

from __future__ import annotations

from collections.abc import Sequence


class GroupDETRError(Exception):
    """An error a user can act on. ``what``: one line; ``where``: file and record; ``remedy``: what to do or type."""

    exit_code = 1

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__("\n".join(line for line in (what, where, remedy) if line))


class UsageError(GroupDETRError):
    """A command, option or argument that cannot be followed."""

    exit_code = 2


class DataError(GroupDETRError):
    """A data set that would break or mislead training."""

    exit_code = 3


def unread(failed: Sequence[DataError], total: int, things: str) -> DataError:
    """What is said of those of ``total`` ``things`` that could not be read, where work went on without them."""
    what = f"{len(failed)} of {total} {things} could not be read; the others are done"
    return DataError(
        what, "\n         ".join(error.where for error in failed[:10]), failed[0].remedy
    )


class DivergedError(GroupDETRError):
    """A loss, cost or gradient that is not finite."""

    exit_code = 4


class WeightsError(UsageError):
    """A checkpoint that does not fit the model, or is of no known layout."""
