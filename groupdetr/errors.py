"""Errors that a user can act on: what went wrong, where, and what to type.

These are the only exceptions that reach a user. Each has its exit code.
"""

from __future__ import annotations

from collections.abc import Sequence

from groupdetr.console.text import escape_controls


class GroupDETRError(Exception):
    """An error that a user can act on.

    ``what`` is one line. ``where`` names the file and the record. ``remedy`` is what to do or type.
    ``exit_code`` is that of the command `groupdetr`.

    >>> try:
    ...     groupdetr.create_model("dino-tini")
    ... except groupdetr.GroupDETRError as error:
    ...     print(error.what)
    there is no model 'dino-tini'
    """

    exit_code = 1  # of the command that ends with this error

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        # Names in the message are data, and Python prints the message as it is.
        message = "\n".join(line for line in (what, where, remedy) if line)
        super().__init__(escape_controls(message, keep_lines=True))


class UsageError(GroupDETRError):
    """A command, option or argument that cannot be used."""

    exit_code = 2


class DataError(GroupDETRError):
    """A dataset that would break or mislead training."""

    exit_code = 3


def failed_inputs(
    failed: Sequence[DataError], total: int, noun: str, verb: str = "read"
) -> DataError:
    """Return the error for inputs that could not be read, while the others were processed.

    ``noun`` names what the ``total`` inputs are, in the plural: images, samples. ``verb`` says what
    could not be done with them.
    """
    if total == 1:
        return failed[0]
    what = f"{len(failed)} of {total} {noun} could not be {verb}; the others are done"
    if len(failed) == total:
        what = f"none of the {total} {noun} could be {verb}"
    where = "\n".join(f"{error.where}: {error.what}" for error in failed[:10])
    return DataError(what, where, failed[0].remedy)


class DivergedError(GroupDETRError):
    """A loss, cost or gradient that is not finite."""

    exit_code = 4


class ExportMismatchError(GroupDETRError):
    """An exported detector that does not agree with PyTorch."""

    exit_code = 5


class CallbackError(GroupDETRError):
    """A user's callback, or a sampler that it chose, that failed during a training.

    ``__cause__`` is the exception that it raised, if it raised one.
    """


class WeightsError(UsageError):
    """A checkpoint that does not fit the model, or has no known layout."""
