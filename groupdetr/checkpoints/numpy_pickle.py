"""Reads numpy arrays out of a plain pickle, as detectron2 writes checkpoints.

The content is ``{"model": {name: array}, ...}``. The unpickler calls the replacements of this file
where the pickle names parts of numpy, and a placeholder where it names anything else. Nothing else
can be called, so the file is only data.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from groupdetr.checkpoints.placeholders import (
    HarmfulNameError,
    is_harmful,
    placeholder,
    python3_name,
)


class ElementType:
    """Replaces numpy.dtype: a kind of number such as f4, and its byte order."""

    def __init__(self, kind: str, *align_and_copy: bool) -> None:
        self.kind = kind
        self.byte_order = "|"

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.byte_order = state[1]

    @property
    def numpy(self) -> np.dtype:
        """The dtype itself. `UnpicklingError` unless the elements are numbers or booleans."""
        name = f"{self.byte_order}{self.kind}"
        if not re.fullmatch(r"[<>=|][biuf]\d", name):
            raise pickle.UnpicklingError(f"unsupported elements {name}")
        return np.dtype(name)


class Array:
    """Replaces numpy.ndarray. A pickle creates an empty one and sets its state later."""

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, self.shape, self.elements, self.fortran_order, self.data = state

    @classmethod
    def from_buffer(
        cls, data: bytes, elements: ElementType, shape: tuple[int, ...], order: str
    ) -> Array:
        array = cls()
        version = 1
        array.__setstate__((version, shape, elements, order == "F", data))
        return array

    @property
    def tensor(self) -> Tensor:
        """A copy of the array as a tensor, in row-major order and this machine's byte order.

        `UnpicklingError` if the pickle has not given the array its elements.
        """
        if not isinstance(getattr(self, "elements", None), ElementType):
            raise pickle.UnpicklingError("an array without elements")
        flat = np.frombuffer(self.data, self.elements.numpy)
        array = flat.reshape(self.shape, order="F" if self.fortran_order else "C")
        native = array.dtype.newbyteorder("=")
        return torch.from_numpy(array.astype(native, order="C"))


def _empty(cls: type, shape: tuple[int, ...], kind: bytes) -> Array:
    return Array()


def _encode(text: str, encoding: str) -> bytes:
    """Pickles of protocol 2 write bytes as latin-1 text."""
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    """Pickles of protocol 2 call the type for empty bytes, without arguments."""
    return b""


REPLACEMENTS: dict[str, Callable[..., object]] = {
    "numpy._core.multiarray._reconstruct": _empty,
    "numpy._core.numeric._frombuffer": Array.from_buffer,  # since protocol 5
    "numpy.ndarray": Array,
    "numpy.dtype": ElementType,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _empty_bytes,
    "collections.OrderedDict": OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., object]:
        full_name = f"{module}.{name}"
        # numpy 1 calls the package numpy.core.
        key = full_name.replace("numpy.core.", "numpy._core.")
        if key in REPLACEMENTS:
            return REPLACEMENTS[key]
        known_name = python3_name(module, name)
        if is_harmful(known_name):
            raise HarmfulNameError(known_name)
        return placeholder(known_name)


def read_arrays(file: BinaryIO) -> object:
    """Return the content of a pickle with tensors in place of its arrays.

    Objects of other classes are replaced by placeholders. `HarmfulNameError` if the pickle asks for
    an action.
    """
    return _to_tensors(_Unpickler(file).load())


def _to_tensors(content: object) -> object:
    if isinstance(content, Mapping):
        return {name: _to_tensors(value) for name, value in content.items()}
    return content.tensor if isinstance(content, Array) else content
