"""Open a checkpoint of any container without executing anything in it."""

from __future__ import annotations

import json
import pickle
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groupdetr.checkpoints import native
from groupdetr.checkpoints.numpy_pickle import read_arrays
from groupdetr.errors import WeightsError

TORCH = torch.serialization.MAGIC_NUMBER.to_bytes(
    10, "little"
)  # at the head of its files of before 1.6


class Logged:
    """Stands for what mmengine logs beside the weights: it takes everything and does nothing."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


LOGGED = (  # all that is asked for by the losses and rates that it keeps
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "numpy.ndarray",
    "numpy.dtype",
    *(
        f"{core}.multiarray.{name}"
        for core in ("numpy._core", "numpy.core")
        for name in ("_reconstruct", "scalar")
    ),
)


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors as a file has them, and what it says of itself beside them."""

    state: dict[str, Tensor]
    facts: dict[
        str, Any
    ]  # training arguments, configuration or our metadata; {} where there is none
    where: str

    def number(self, fact: str) -> int | None:
        """A positive whole number among the facts, if it is there and is one."""
        value = self.facts.get(fact)
        return value if isinstance(value, int) and value > 0 else None


def open_checkpoint(source: str | Path) -> Checkpoint:
    """A .pth, .pt or .pkl file, a .safetensors file, or a folder of Hugging Face transformers."""
    path = Path(source)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise WeightsError(
            "no weights there", str(path), "pass a .pth, .pt, .pkl or .safetensors file or a folder"
        )
    return _open_safetensors(path) if _is_safetensors(path) else _open_pickle(path)


def _open_folder(path: Path) -> Checkpoint:
    """config.json and one file of weights, as `save_pretrained` writes them."""
    files = [
        path / name
        for name in ("model.safetensors", "pytorch_model.bin")
        if (path / name).is_file()
    ]
    config = path / "config.json"
    if not files or not config.is_file():
        wanted = "config.json and model.safetensors or pytorch_model.bin"
        raise WeightsError(
            f"this folder is no checkpoint: it lacks {wanted}", str(path), "pass a file instead"
        )
    try:
        facts = dict(json.loads(config.read_text()))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"the configuration cannot be read: {error}", str(config)) from error
    return Checkpoint(open_checkpoint(files[0]).state, facts, str(path))


def _is_safetensors(path: Path) -> bool:
    """By content: eight bytes of length, then JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _open_safetensors(path: Path) -> Checkpoint:
    state, metadata = native.read(path)
    return Checkpoint(state, metadata, str(path))


def _open_pickle(path: Path) -> Checkpoint:
    """Tensors or arrays, or ``{"model": them, "args": Namespace}`` and the like as training scripts save it."""
    content = _load(path)
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"these are no named tensors but one {type(content).__name__}", str(path)
        )
    inner = next(
        (content[key] for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)),
        content,
    )
    args = content.get("args", content.get("meta", {}))  # meta: mmcv's and mmengine's
    odd = [str(name) for name, value in inner.items() if not isinstance(value, Tensor)]
    if odd:
        raise WeightsError(f"these are no tensors: {_first(odd)}", str(path))
    facts = vars(args) if isinstance(args, Namespace) else args
    return Checkpoint(dict(inner), dict(facts) if isinstance(facts, Mapping) else {}, str(path))


def _load(path: Path) -> Any:
    """Unpickle tensors or arrays, plain values and a Namespace of them. Anything else is named and refused, not run."""
    known: list[Any] = [Namespace, *((Logged, name) for name in LOGGED)]
    try:
        with path.open("rb") as file, torch.serialization.safe_globals(known):
            if _is_of_arrays(file.peek(32)):
                return read_arrays(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"this file asks to run code or is damaged: {_reason(error)}",
            str(path),
            "nothing was run; get the weights as .safetensors, or a new copy from a source you trust",
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise WeightsError(
            f"this file is damaged: {_reason(error)}", str(path), "copy or download it again"
        ) from error


def _is_of_arrays(head: bytes) -> bool:
    """By content: a pickle, and not one of torch's."""
    return head.startswith(pickle.PROTO) and TORCH not in head[:32]


def _reason(error: Exception) -> str:
    """The line of torch's long message that names what was found."""
    lines = str(error).splitlines() or [type(error).__name__]
    return next((line.strip() for line in lines if "nsupported" in line), lines[0])


def _first(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" ... ({len(names)} in all)" if len(names) > 10 else "")
