"""Numpy arrays out of a plain pickle, as detectron2 writes checkpoints: ``{"model": {name: array}, ...}``.

Stand-ins of ours are called where the file asks for numpy's parts, and nothing else can be: the file is data.
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


class ElementType:
    """Stands for numpy.dtype: a kind of number such as f4, and the order of its bytes."""

    def __init__(self, kind: str, *copy: bool) -> None:
        del copy
        self.kind, self.order = kind, "|"

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.order = state[1]

    @property
    def numpy(self) -> np.dtype:
        if not re.fullmatch(r"[<>=|][biuf]\d", f"{self.order}{self.kind}"):
            raise pickle.UnpicklingError(f"unsupported elements {self.order}{self.kind}")
        return np.dtype(f"{self.order}{self.kind}")


class Array:
    """Stands for numpy.ndarray, which is made empty and told its state later."""

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, self.shape, self.elements, self.by_columns, self.data = state

    @classmethod
    def of_buffer(
        cls, data: bytes, elements: ElementType, shape: tuple[int, ...], order: str
    ) -> Array:
        array = cls()
        array.__setstate__((1, shape, elements, order == "F", data))
        return array

    @property
    def tensor(self) -> Tensor:
        array = np.frombuffer(self.data, self.elements.numpy).reshape(
            self.shape, order="F" if self.by_columns else "C"
        )
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


def _empty(cls: type, shape: tuple[int, ...], kind: bytes) -> Array:
    del cls, shape, kind
    return Array()


def _bytes(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 write bytes."""
    del encoding  # always latin1
    return text.encode("latin1")


STAND_INS: dict[str, Callable[..., Any]] = {
    "numpy._core.multiarray._reconstruct": _empty,
    "numpy._core.numeric._frombuffer": Array.of_buffer,  # since protocol 5
    "numpy.ndarray": Array,
    "numpy.dtype": ElementType,
    "_codecs.encode": _bytes,
    "__builtin__.bytes": bytes,  # none of them
    "collections.OrderedDict": OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        asked = f"{module}.{name}"
        known = asked.replace("numpy.core.", "numpy._core.")  # as it was called before numpy 2
        if known not in STAND_INS:
            raise pickle.UnpicklingError(f"unsupported {asked}")
        return STAND_INS[known]


def read_arrays(file: BinaryIO) -> Any:
    """What a pickle holds, its arrays as tensors; UnpicklingError where it asks for more than arrays."""
    return _with_tensors(_Unpickler(file).load())


def _with_tensors(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _with_tensors(value) for name, value in content.items()}
    return content.tensor if isinstance(content, Array) else content
