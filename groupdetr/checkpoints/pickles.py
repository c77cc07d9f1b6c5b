"""Unpickles checkpoints: tensors, arrays and plain values are read, and nothing is executed."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from groupdetr.checkpoints.numpy_pickle import read_arrays
from groupdetr.checkpoints.placeholders import (
    REPLACEMENTS,
    HarmfulNameError,
    IgnoredDict,
    global_names,
    is_harmful,
    placeholder,
)
from groupdetr.errors import WeightsError

# In the first bytes of a file of torch before 1.6.
TORCH_MAGIC = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
CHUNK = 2**20
# Classes that hold the arguments of a training script. They only have attributes.
NAMESPACES = (Namespace, SimpleNamespace)
NOT_EXECUTED = "nothing was executed"
MAX_REASON = 200  # characters of another library's message that an error repeats


def unpickle(path: Path) -> object:
    """Return the content of a file of torch, or of a plain pickle with arrays.

    Objects that are neither tensors nor plain values nor one of `NAMESPACES` are replaced by
    placeholders.
    `WeightsError` if the file asks for an action, or is damaged.
    """
    try:
        with path.open("rb") as file:
            if _is_plain_pickle(file.peek(32)):
                return read_arrays(file)
        _check_sums(path)
        return _load_torch(path)
    except HarmfulNameError as error:
        raise WeightsError(
            f"this file contains code: it asks to run {error}",
            str(path),
            f"{NOT_EXECUTED}; get the weights as .safetensors, or from a source that you trust",
        ) from error
    except OSError as error:
        raise WeightsError(
            f"this file cannot be read: {error.strerror or error}",
            str(path),
            "check its permissions, and that the disk is connected",
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way
        remedy = "copy or download it again"
        if "nsupported operand" in str(error):
            # torch reads only the instructions of the protocol that it writes by default.
            remedy = (
                f"{NOT_EXECUTED}; if it was written with another pickle_protocol, save it again "
                "with torch.save(content, file), without that argument"
            )
        raise WeightsError(
            f"this file is damaged, or is not of torch: {_first_reason(error)}", str(path), remedy
        ) from error


def _is_plain_pickle(head: bytes) -> bool:
    """Return whether the content is a plain pickle and not one of torch's."""
    return head.startswith(pickle.PROTO) and TORCH_MAGIC not in head[:32]


def _check_sums(path: Path) -> None:
    """Raise `UnpicklingError` if a part of a file of torch has other bytes than were written.

    Such a file is a zip archive with a checksum of every part, which torch.load does not compare.
    torch.save can be told to leave them out, and then all are wrong.
    """
    if not zipfile.is_zipfile(path):
        return
    right, wrong = 0, []
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.file_size == 0:
                continue
            try:
                with archive.open(entry) as part:
                    while part.read(CHUNK):
                        pass
                right += 1
            except zipfile.BadZipFile:
                wrong.append(entry.filename)
    if right and wrong:
        raise pickle.UnpicklingError(f"the checksum of {wrong[0][:MAX_REASON]!r} in it is wrong")


def _load_torch(path: Path) -> object:
    """Read a file of torch. Where it names unknown classes, placeholders take their places."""
    try:
        return _load_with(path, [*NAMESPACES])
    except pickle.UnpicklingError as error:
        names = global_names(path)
        for name in sorted(names):
            if is_harmful(name):
                raise HarmfulNameError(name) from error
        # A placeholder for a name that torch knows is not used.
        unknown = sorted(names - {f"{kind.__module__}.{kind.__name__}" for kind in NAMESPACES})

    # torch only puts items into real dicts and lists. Which of the classes are derived from them is
    # not known, so each is tried as an object first, and torch's message has the class that failed.
    attempts = dict.fromkeys(unknown, 0)  # name -> index of the replacement that is tried
    while True:
        placeholders = {name: placeholder(name, REPLACEMENTS[i]) for name, i in attempts.items()}
        for number, replacement in enumerate(placeholders.values()):
            replacement.__qualname__ = f"placeholder_{number}_"
        try:
            replaced = [(replacement, name) for name, replacement in placeholders.items()]
            return _load_with(path, [*NAMESPACES, *replaced])
        except pickle.UnpicklingError as error:
            failed = re.search(r"placeholder_(\d+)_", str(error))
            if failed is None:
                raise
            name = unknown[int(failed[1])]
            attempts[name] += 1
            if "SETITEM" in str(error):  # the instruction that puts items into a dict
                attempts[name] = max(attempts[name], REPLACEMENTS.index(IgnoredDict))
            if attempts[name] == len(REPLACEMENTS):
                raise pickle.UnpicklingError(f"unsupported object of {name}") from error


def _load_with(path: Path, allowed: list[Any]) -> object:
    with (
        path.open("rb") as file,
        torch.serialization.safe_globals(allowed),
        # Of a damaged file, torch reports the number of the protocol that it seems to have.
        warnings.catch_warnings(action="ignore", category=UserWarning),
    ):
        return torch.load(file, map_location="cpu", weights_only=True)


def _first_reason(error: Exception) -> str:
    """Return the part of torch's long message that says what is not supported, in one line."""
    text = str(error) or type(error).__name__
    # The message of the unpickler comes after advice to load the file without restrictions.
    text = text.partition("WeightsUnpickler error:")[2] or text
    if "legacy .tar format" in text:
        # torch takes everything that is neither its own nor a pickle for this format.
        return "it is neither a pickle nor an archive that torch.save writes"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = next((line for line in lines if "nsupported" in line), lines[0] if lines else text)
    return reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}..."
