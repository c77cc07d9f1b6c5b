"""Unpickles checkpoints: tensors, arrays and plain values are read, and nothing is executed."""

from __future__ import annotations

import pickle
import re
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from groupdetr.checkpoints.numpy_pickle import read_arrays
from groupdetr.checkpoints.placeholders import (
    REPLACEMENTS,
    HarmfulNameError,
    global_names,
    is_harmful,
    placeholder,
)
from groupdetr.errors import WeightsError

# In the first bytes of a file of torch before 1.6.
TORCH_MAGIC = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
NOT_EXECUTED = "nothing was executed"
MAX_REASON = 200  # characters of another library's message that an error repeats


def unpickle(path: Path) -> object:
    """Return the content of a file of torch, or of a plain pickle with arrays.

    Objects that are neither tensors nor plain values nor a Namespace are replaced by placeholders.
    `WeightsError` if the file asks for an action, or is damaged.
    """
    try:
        with path.open("rb") as file:
            if _is_plain_pickle(file.peek(32)):
                return read_arrays(file)
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


def _load_torch(path: Path) -> object:
    """Read a file of torch. Where it names unknown classes, placeholders take their places."""
    try:
        return _load_with(path, [Namespace])
    except pickle.UnpicklingError as error:
        names = global_names(path)
        for name in sorted(names):
            if is_harmful(name):
                raise HarmfulNameError(name) from error
        # A placeholder for a name that torch knows is not used.
        unknown = sorted(names - {"argparse.Namespace"})

    # torch only puts items into real dicts and lists. Which of the classes are derived from them is
    # not known, so each is tried as an object first, and torch's message has the class that failed.
    kinds = dict.fromkeys(unknown, 0)
    while True:
        stand_ins = {name: placeholder(name, REPLACEMENTS[kind]) for name, kind in kinds.items()}
        for number, stand_in in enumerate(stand_ins.values()):
            stand_in.__qualname__ = f"stand_in_{number}_"
        try:
            return _load_with(path, [Namespace, *[(new, name) for name, new in stand_ins.items()]])
        except pickle.UnpicklingError as error:
            failed = re.search(r"stand_in_(\d+)_", str(error))
            if failed is None:
                raise
            name = unknown[int(failed[1])]
            kinds[name] += 1
            if kinds[name] == len(REPLACEMENTS):
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
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = next((line for line in lines if "nsupported" in line), lines[0] if lines else text)
    return reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}..."
